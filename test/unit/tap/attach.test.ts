import { describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import { IFF_TAP, IFF_TUN, IFF_VNET_HDR } from '../../../src/abi/tun.ts'
import { SysError, UserError } from '../../../src/base/errors.ts'
import { attachTap, checkAttachment, explainAttach, explainOpen } from '../../../src/tap/attach.ts'
import type { Link, TunFacts } from '../../../src/tap/links.ts'

const { EACCES, EBUSY, EINVAL, EIO, ENODEV, ENOENT, EPERM } = constants.errno

const link = (kind: string, tun: TunFacts | null = null): Link => ({
  index: 7,
  name: 'tap0',
  address: new Uint8Array(6),
  up: true,
  carrier: true,
  mtu: 1500,
  mtuMin: 68,
  mtuMax: 65521,
  master: 0,
  kind,
  tun,
})
const tap = { isTap: true, packetInfo: false, persistent: true, multiQueue: false, queues: 0 }

describe('what keeps a TAP from being opened', () => {
  const table: [string, number, Link | null, number, string, number][] = [
    ['busy', EBUSY, link('tun', tap), 1, 'tap0: in use by another process', 1],
    ['may not create', EPERM, null, 1, 'tap0: no permission to create a TAP', 77],
    [
      'not its owner',
      EPERM,
      link('tun', tap),
      1,
      'tap0: no permission to open it (it belongs to another user, or to none)',
      77,
    ],
    ['a veth', EINVAL, link('veth'), 1, 'tap0: is not a TAP (it is a veth)', 1],
    ['hardware', EINVAL, link(''), 1, 'tap0: is not a TAP (it is a hardware or loopback interface)', 1],
    [
      'a TUN',
      EINVAL,
      link('tun', { ...tap, isTap: false }),
      1,
      'tap0: is a TUN (IP packets), not a TAP (Ethernet frames)',
      1,
    ],
    [
      'multi_queue, one queue',
      EINVAL,
      link('tun', { ...tap, multiQueue: true }),
      1,
      'tap0: was created with multi_queue, and is opened with one queue',
      1,
    ],
    [
      'one queue, several wanted',
      EINVAL,
      link('tun', tap),
      4,
      'tap0: was created without multi_queue, and is opened with 4 queues',
      1,
    ],
  ]
  test.each(table)('%s', (_name, errno, there, queues, message, exitCode) => {
    const error = explainAttach('tap0', errno, there, queues)
    expect(error).toBeInstanceOf(UserError)
    expect(error.message).toBe(message)
    expect((error as UserError).exitCode).toBe(exitCode as 1)
    expect((error as UserError).hint).not.toBe('')
  })

  test('a reason that nobody planned for keeps its errno', () => {
    expect(explainAttach('tap0', EIO, null, 1)).toEqual(new SysError('tap0: TUNSETIFF', EIO))
    expect(explainAttach('tap0', EINVAL, link('tun', tap), 1)).toEqual(new SysError('tap0: TUNSETIFF', EINVAL))
  })

  test.each([
    [ENOENT, '/dev/net/tun: ENOENT (the tun module is not loaded)', 66],
    [ENODEV, '/dev/net/tun: ENODEV (the tun module is not loaded)', 66],
    [EACCES, '/dev/net/tun: EACCES (no permission to open it)', 77],
    [EPERM, '/dev/net/tun: EPERM (no permission to open it)', 77],
  ])('the clone device: errno %i', (errno, message, exitCode) => {
    const error = explainOpen('/dev/net/tun', errno) as UserError
    expect(error.message).toBe(message)
    expect(error.exitCode).toBe(exitCode as 66)
  })

  test('no clone device is told with its path, and the module', () => {
    const open = () => attachTap('tap0', { queues: 1, vnetHdr: true, tunPath: '/dev/net/no-such-tun' }, () => null)
    expect(open).toThrow('/dev/net/no-such-tun: ENOENT (the tun module is not loaded)')
  })
})

describe('what does not fit in an interface that is open', () => {
  const fits = IFF_TAP | IFF_VNET_HDR
  test.each([
    ['a TUN', IFF_TUN | IFF_VNET_HDR, tap, true, 'tap0: is a TUN (IP packets), not a TAP (Ethernet frames)'],
    [
      'packet information',
      fits,
      { ...tap, packetInfo: true },
      true,
      'tap0: puts packet information in front of each frame (created without IFF_NO_PI)',
    ],
    ['no vnet header', IFF_TAP, tap, true, 'tap0: has no vnet header (created without IFF_VNET_HDR)'],
    ['a vnet header', fits, tap, false, 'tap0: has a vnet header (created with IFF_VNET_HDR)'],
  ])('%s', (_name, flags, facts, vnetHdr, message) => {
    expect(() => checkAttachment({ name: 'tap0', flags }, facts, vnetHdr)).toThrow(message)
  })

  test.each([
    [fits, tap, true],
    [fits, null, true],
    [fits, tap, null],
    [IFF_TAP, tap, false],
    [IFF_TAP, tap, null],
  ])('flags %i with %j fit vnet header %p', (flags, facts, vnetHdr) => {
    expect(() => checkAttachment({ name: 'tap0', flags }, facts, vnetHdr)).not.toThrow()
  })
})
