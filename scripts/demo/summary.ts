import type { Refusal } from '../host.mjs'
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

const formatPacketRate = (figures: PacketFigures): string => `${(figures.packetsPerSecond / 1e6).toFixed(2)} million/s`

const formatPacketCost = (figures: PacketFigures): string =>
  `${figures.cpuNsPerPacket.toFixed(0)} ns, ${percent(processorShare(figures))} of a processor`

/** Packets a second, what each cost the card, and how much of a processor it used for them. */
export const formatPackets = (figures: PacketFigures): string =>
  `${formatPacketRate(figures)}, each ${formatPacketCost(figures)}`

const formatPing = (ms: number): string => `${ms.toFixed(ms < 1 ? 3 : 1)} ms`

/** What both columns have, from the top. */
const ROWS = ['', 'ping, average round trip', 'TCP, TAP to driver', 'TCP, driver to TAP'] as const

const column = (title: string, { pingMs, tcp }: LinuxFigures): string[] => [
  title,
  formatPing(pingMs),
  formatRate(tcp.toDriver),
  formatRate(tcp.fromDriver),
]

const row = (name: string, left = '', right = ''): string => `${name.padEnd(26)}${left.padEnd(16)}${right}`.trimEnd()

/** The exit code when nothing failed, but this machine did not permit all to be shown. */
const EXIT_SHOWN_IN_PART = 3

/** How the demonstration ends: what is said of it as a whole, what could not be shown and why, and the exit code. */
export const closing = (
  native: NativeFigures | Refusal,
): { readonly title: string; readonly notShown: readonly string[]; readonly exitCode: number } => {
  const notShown: string[] = []
  if ('why' in native) notShown.push(`the card over vhost-user: ${native.why}; ${native.hint}`)
  else if (native.packets === null) notShown.push('packets of DPDK, which polls: this machine has one processor')
  if (notShown.length === 0) return { title: 'All shown; what was measured', notShown, exitCode: 0 }
  return { title: 'Not all could be shown here; what was measured', notShown, exitCode: EXIT_SHOWN_IN_PART }
}

/** The figures of both, as a table for people. `native` is null if this machine did not permit it. */
export const formatSummary = (vduse: LinuxFigures, native: NativeFigures | null): string[] => {
  const left = column('VDUSE', vduse)
  const right = native === null ? [] : column('vhost-user', native)
  const lines = ROWS.map((name, index) => row(name, left[index], right[index]))
  const packets = native?.packets ?? null
  if (packets !== null) {
    lines.push(row(`DPDK, ${packets.frameBytes} B packets`, '-', formatPacketRate(packets)))
    lines.push(row('  of the card, for each', '-', formatPacketCost(packets)))
  }
  lines.push('', `VDUSE: ${vduse.what}`)
  if (native !== null) lines.push(`vhost-user: ${native.what}`)
  if (packets !== null && processorShare(packets) < BUSY_SHARE) {
    lines.push(
      `The card used only ${percent(processorShare(packets))} of a processor for DPDK: other programs ` +
        'kept this machine busy, or DPDK was slower.',
    )
  }
  return lines
}
