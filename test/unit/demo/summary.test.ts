import { describe, expect, test } from 'bun:test'
import { closing, formatSummary, type LinuxFigures, type NativeFigures } from '../../../scripts/demo/summary.ts'

const vduse: LinuxFigures = { what: 'in an emulator', pingMs: 14.04, tcp: { toDriver: 403e6, fromDriver: 196e6 } }
const native: NativeFigures = {
  what: 'on this machine',
  pingMs: 0.97,
  tcp: { toDriver: 5.91e9, fromDriver: 9.02e9 },
  packets: { frameBytes: 64, packetsPerSecond: 1_060_797, cpuNsPerPacket: 938.6 },
}

describe('summary of the demonstration', () => {
  test('has the figures of both beside each other, and says what each is', () => {
    expect(formatSummary(vduse, native)).toEqual([
      '                          VDUSE           vhost-user',
      'ping, average round trip  14.0 ms         0.970 ms',
      'TCP, TAP to driver        0.40 Gbit/s     5.91 Gbit/s',
      'TCP, driver to TAP        0.20 Gbit/s     9.02 Gbit/s',
      'DPDK, 64 B packets        -               1.06 million/s',
      '  of the card, for each   -               939 ns, 100 % of a processor',
      '',
      'VDUSE: in an emulator',
      'vhost-user: on this machine',
    ])
  })

  test('leaves out packets where none were sent', () => {
    const lines = formatSummary(vduse, { ...native, packets: null })
    expect(lines.some((line) => line.includes('DPDK'))).toBe(false)
    expect(lines[1]).toContain('0.970 ms')
  })

  test('says so when the card did not get the processor that it could have used', () => {
    const packets = { frameBytes: 64, packetsPerSecond: 50_000, cpuNsPerPacket: 1600 }
    const lines = formatSummary(vduse, { ...native, packets })
    expect(lines[4]).toContain('0.05 million/s')
    expect(lines[5]).toContain('1600 ns, 8 % of a processor')
    expect(lines.at(-1)).toContain('only 8 % of a processor')
  })

  test('has one column where the machine permits no native front-end', () => {
    expect(formatSummary(vduse, null)).toEqual([
      '                          VDUSE',
      'ping, average round trip  14.0 ms',
      'TCP, TAP to driver        0.40 Gbit/s',
      'TCP, driver to TAP        0.20 Gbit/s',
      '',
      'VDUSE: in an emulator',
    ])
  })
})

describe('the end of the demonstration', () => {
  test('says that all was shown only if it was', () => {
    expect(closing(native)).toEqual({ title: 'All shown; what was measured', notShown: [], exitCode: 0 })
  })

  test.each([
    [{ why: 'no /dev/net/tun (ENOENT)', hint: 'run: modprobe tun' }, 'no /dev/net/tun (ENOENT); run: modprobe tun'],
    [{ ...native, packets: null }, 'one processor'],
  ])('says what was not, why, and exits otherwise', (outcome, why) => {
    const { title, notShown, exitCode } = closing(outcome)
    expect(title).not.toContain('All')
    expect(notShown.join()).toContain(why)
    expect(exitCode).toBe(3)
  })
})
