import { formatRate, type TcpRates } from './steps.ts'

/** What a Linux behind the card was seen to do. */
export type LinuxFigures = {
  /** On what it ran, in words. */
  readonly what: string
  /** Average round trip. */
  readonly pingMs: number
  readonly tcp: TcpRates
}

/** What a driver that polls was seen to send: as fast as the card takes it. */
export type PacketFigures = {
  readonly frameBytes: number
  readonly packetsPerSecond: number
  /** Processor time of the card, all its threads. */
  readonly cpuNsPerPacket: number
}

/** `packets` is missing where the machine has too few processors for it. */
export type NativeFigures = LinuxFigures & { readonly packets: PacketFigures | null }

/** Packets a second, and what each cost. */
export const formatPackets = ({ packetsPerSecond, cpuNsPerPacket }: PacketFigures): string =>
  `${(packetsPerSecond / 1e6).toFixed(2)} million packets/s, ${cpuNsPerPacket.toFixed(0)} ns of processor time each`

const formatPing = (ms: number): string => `${ms.toFixed(ms < 1 ? 3 : 1)} ms`

const row = (name: string, left: string, right: string): string =>
  `${name.padEnd(26)}${left.padEnd(16)}${right}`.trimEnd()

/** The figures of both, as a table for people. `native` is null if this machine did not permit it. */
export const formatSummary = (vduse: LinuxFigures, native: NativeFigures | null): string[] => {
  const beside = (format: (figures: NativeFigures) => string): string => (native === null ? '' : format(native))
  const lines = [
    row(
      '',
      'VDUSE',
      beside(() => 'vhost-user'),
    ),
    row(
      'ping, average round trip',
      formatPing(vduse.pingMs),
      beside(({ pingMs }) => formatPing(pingMs)),
    ),
    row(
      'TCP, TAP to driver',
      formatRate(vduse.tcp.toDriver),
      beside(({ tcp }) => formatRate(tcp.toDriver)),
    ),
    row(
      'TCP, driver to TAP',
      formatRate(vduse.tcp.fromDriver),
      beside(({ tcp }) => formatRate(tcp.fromDriver)),
    ),
  ]
  const packets = native?.packets ?? null
  if (packets !== null) lines.push(row(`DPDK, ${packets.frameBytes} B packets`, '-', formatPackets(packets)))
  lines.push('', `VDUSE: ${vduse.what}`)
  if (native !== null) lines.push(`vhost-user: ${native.what}`)
  return lines
}
