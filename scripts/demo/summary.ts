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

/** A card that is offered more than it can take uses a whole processor, unless others keep that from it. */
const BUSY_SHARE = 0.85

const processorShare = (figures: PacketFigures): number => (figures.packetsPerSecond * figures.cpuNsPerPacket) / 1e9

const percent = (share: number): string => `${(share * 100).toFixed(0)} %`

/** Packets a second, and what they cost: a busy machine has fewer of them, but not dearer ones. */
export const formatPackets = (figures: PacketFigures): string => {
  const millions = (figures.packetsPerSecond / 1e6).toFixed(2)
  const cost = figures.cpuNsPerPacket.toFixed(0)
  return `${millions} million/s, ${cost} ns each on ${percent(processorShare(figures))} of a processor`
}

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
  if (packets !== null && processorShare(packets) < BUSY_SHARE) {
    const share = percent(processorShare(packets))
    lines.push(
      `Other programs kept this machine busy: the card had ${share} of a processor. Where it is idle it does more.`,
    )
  }
  return lines
}
