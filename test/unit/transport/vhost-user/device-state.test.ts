import { describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import {
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
} from '../../../../src/abi/vhost-user.ts'
import { native } from '../../../../src/sys/native.ts'
import {
  type CardState,
  DeviceStateTransfer,
  describeState,
  readState,
  STATE_BYTES_MAX,
  stateBytes,
} from '../../../../src/transport/vhost-user/device-state.ts'

const HERE: CardState = { mtu: 1500, queuePairs: 2 }
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text)
const read = (text: string): CardState | string => readState(bytesOf(text), HERE)

const begin = (direction: number, phase = VHOST_TRANSFER_STATE_PHASE_STOPPED): DeviceStateTransfer => {
  const transfer = DeviceStateTransfer.begin(direction, phase, HERE)
  if (typeof transfer === 'string') throw new Error(transfer)
  return transfer
}

/** What the front-end reads to the end. */
const readAll = (fd: number): string => {
  const bytes = new Uint8Array(2 * STATE_BYTES_MAX)
  return new TextDecoder().decode(bytes.subarray(0, native.vn_read(fd, bytes, bytes.length)))
}

const openFds = (): number => readdirSync('/proc/self/fd').length

describe('the state of a card', () => {
  test('is a short text, which is read back', () => {
    expect(new TextDecoder().decode(stateBytes(HERE))).toBe('{"vduse-net":1,"mtu":1500,"queuePairs":2}')
    for (const state of [HERE, { mtu: 68, queuePairs: 1 }, { mtu: 1499, queuePairs: 2 }])
      expect(readState(stateBytes(state), HERE)).toEqual(state)
  })

  test('may say more than is known, and up to 4 KiB of it', () => {
    const padding = (length: number): string =>
      `{"vduse-net":1,"mtu":1500,"queuePairs":2,"more":"${'x'.repeat(length)}"}`
    const room = STATE_BYTES_MAX - padding(0).length
    expect(read(padding(room))).toEqual(HERE)
    expect(read(padding(room + 1))).toMatch(
      /^the transferred state is not that of a vduse-net card;.*more than 4096 bytes/,
    )
  })

  test('is refused if it is something else', () => {
    for (const text of [
      '',
      ' ',
      'null',
      '1',
      '"vduse-net"',
      '[]',
      '{}',
      '{"mtu":1500,"queuePairs":2}',
      '{"vduse-net":1,"mtu":1500,"queuePairs":2',
      '{"vduse-net":1,"mtu":1500,"queuePairs":2}\0',
      '{"vduse-net":"1","mtu":1500,"queuePairs":2}',
      '{"vduse-net":0,"mtu":1500,"queuePairs":2}',
      '{"vduse-net":1.5,"mtu":1500,"queuePairs":2}',
      '{"__proto__":{"vduse-net":1,"mtu":1500,"queuePairs":2}}',
      '{"vduse-net":1,"queuePairs":2}',
      '{"vduse-net":1,"mtu":1500}',
      '{"vduse-net":1,"mtu":"1500","queuePairs":2}',
      '{"vduse-net":1,"mtu":-1,"queuePairs":2}',
      '{"vduse-net":1,"mtu":1e400,"queuePairs":2}',
      '{"vduse-net":1,"mtu":1500,"queuePairs":0}',
      '{"vduse-net":1,"mtu":1500,"queuePairs":null}',
      '['.repeat(STATE_BYTES_MAX),
      '\0'.repeat(100),
    ])
      expect([text, read(text)]).toEqual([text, expect.stringContaining('not that of a vduse-net card; run vduse-net')])
    expect(readState(Uint8Array.of(0x22, 0xff, 0x22), HERE)).toContain('not that of a vduse-net card')
  })

  test('is refused in a format of another version, whatever else it says', () => {
    for (const text of ['{"vduse-net":2}', '{"vduse-net":2,"mtu":1500,"queuePairs":2}'])
      expect(read(text)).toBe(
        "the other card's state has format 2, this one reads 1; run the same vduse-net at both ends",
      )
  })

  test('is refused of a card that lets longer frames pass, or has more queue pairs', () => {
    expect(readState(stateBytes({ mtu: 1501, queuePairs: 2 }), HERE)).toBe(
      'the other card has MTU 1501, and this one drops frames longer than 1500; start it with --mtu 1501',
    )
    expect(readState(stateBytes({ mtu: 1500, queuePairs: 3 }), HERE)).toBe(
      'the other card has 3 queue pairs, and this one 2; start it with --queue-pairs 3',
    )
  })

  test('is described for the log', () => {
    expect(describeState(HERE)).toBe('a card with MTU 1500 and 2 queue pairs')
    expect(describeState({ mtu: 9000, queuePairs: 1 })).toBe('a card with MTU 9000 and 1 queue pair')
  })
})

describe('DeviceStateTransfer', () => {
  test('hands over a text that is whole and ends', () => {
    using transfer = begin(VHOST_TRANSFER_STATE_DIRECTION_SAVE)
    expect(transfer.direction).toBe('save')
    expect(readAll(transfer.fd)).toBe('{"vduse-net":1,"mtu":1500,"queuePairs":2}')
    expect(readAll(transfer.fd)).toBe('')
    expect(transfer.finish(HERE)).toEqual(HERE)
  })

  test('takes over what was written in pieces', () => {
    using transfer = begin(VHOST_TRANSFER_STATE_DIRECTION_LOAD)
    expect(transfer.direction).toBe('load')
    for (const byte of stateBytes({ mtu: 1400, queuePairs: 1 }))
      expect(native.vn_write(transfer.fd, Uint8Array.of(byte), 1)).toBe(1)
    expect(transfer.finish(HERE)).toEqual({ mtu: 1400, queuePairs: 1 })
  })

  test('takes over nothing, too little or too much as what it is', () => {
    for (const bytes of [new Uint8Array(0), stateBytes(HERE).subarray(1), new Uint8Array(1 << 20).fill(0x20)]) {
      using transfer = begin(VHOST_TRANSFER_STATE_DIRECTION_LOAD)
      if (bytes.length > 0) expect(native.vn_write(transfer.fd, bytes, bytes.length)).toBe(bytes.length)
      expect(transfer.finish(HERE)).toContain('not that of a vduse-net card')
    }
  })

  test('knows the directions and the phase of the document, and no others', () => {
    for (const direction of [2, 0x100, 0xffff_ffff])
      expect(DeviceStateTransfer.begin(direction, VHOST_TRANSFER_STATE_PHASE_STOPPED, HERE)).toBe(
        `unknown direction ${direction}`,
      )
    for (const phase of [1, 0xffff_ffff])
      expect(DeviceStateTransfer.begin(VHOST_TRANSFER_STATE_DIRECTION_SAVE, phase, HERE)).toBe(`unknown phase ${phase}`)
  })

  test('holds on to nothing afterwards', () => {
    const before = openFds()
    for (const direction of [VHOST_TRANSFER_STATE_DIRECTION_SAVE, VHOST_TRANSFER_STATE_DIRECTION_LOAD]) {
      using transfer = begin(direction)
      expect(openFds()).toBe(before + 2)
      transfer.finish(HERE)
    }
    for (const direction of [7, 8]) DeviceStateTransfer.begin(direction, VHOST_TRANSFER_STATE_PHASE_STOPPED, HERE)
    expect(openFds()).toBe(before)
  })
})
