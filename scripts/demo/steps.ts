import type { Lab } from '../lab/lab.ts'
import { addUp, type Counters, type Ends, formatCounters } from './counters.ts'
import { wrap } from './layout.ts'
import { type Report, StepFailure } from './report.ts'

const PINGS = 5
const TCP_SECONDS = 4
/**
 * Interfaces and card count the last packets at slightly different times, the driver when it cleans up behind itself.
 */
const COUNTERS_TIMEOUT_MS = 15_000

/** Of GET /v1/device, what is shown. */
export type Device = {
  readonly name: string
  readonly attached: boolean
  readonly mac: string
  readonly mtu: number
  readonly driver: string | null
  readonly linkUp: boolean
  readonly status: { readonly names: readonly string[] }
  readonly features: { readonly negotiated: readonly string[] }
  readonly vduse: { readonly apiVersion: number; readonly features: readonly string[] } | null
}

/** Bits per second of TCP payload, as seen by the driver. */
export type TcpRates = { readonly toDriver: number; readonly fromDriver: number }

/**
 * Runs a command of a guest and shows it and what it says, as it says it. Returns its lines. `where` is said when there
 * is more than one place.
 */
export const run = async (lab: Lab, report: Report, command: string, where?: string): Promise<readonly string[]> => {
  report.command(command, where)
  const child = lab.spawn(command, { onLine: (line) => report.output(line) })
  const code = await child.exited
  if (code !== 0) throw new StepFailure(`${command}: exit code ${code}`)
  return child.lines
}

/** Shows what card and driver have agreed on. `about` are lines of the transport, each with its label. */
export const showDevice = (device: Device, about: readonly string[], report: Report): void => {
  report.note(`name      ${device.name}`)
  for (const line of about) report.note(line)
  report.note(`MAC       ${device.mac}`)
  report.note(`status    ${device.status.names.join(' ')}, link ${device.linkUp ? 'up' : 'down'}`)
  for (const [index, line] of wrap(device.features.negotiated.join(' '), 66, 0).entries()) {
    report.note(`${index === 0 ? 'features  ' : '          '}${line}`)
  }
}

/**
 * How many answers came, by ping's own words; 0 if one is missing. With a deadline ping sends on until it has as many
 * as it was told, and on a busy machine one more may be under way by then.
 */
export const receivedPings = (lines: readonly string[]): number => {
  const [, sent, received] =
    lines.map((line) => /^(\d+) packets transmitted, (\d+) received,/.exec(line)).find(Boolean) ?? []
  return sent === received ? Number(received ?? 0) : 0
}

/** Pings from where `lab` runs commands. All must be answered; returns the average round trip, ms. */
export const showPing = async (lab: Lab, report: Report, address: string, where?: string): Promise<number> => {
  report.step('Ping through the card')
  const lines = await run(lab, report, `ping -c ${PINGS} -i 0.2 -w 30 ${address}`, where)
  const received = receivedPings(lines)
  if (received < PINGS) throw new StepFailure('pings were lost')
  const [, average] = lines.map((line) => /^rtt [^=]*= [\d.]+\/([\d.]+)\//.exec(line)).find(Boolean) ?? []
  if (average === undefined) throw new StepFailure('ping does not say how long the answers took')
  report.proven(`all ${received} answered`)
  return Number(average)
}

/** TCP both ways through the card, by iperf3. Its server runs already at `address`, its client at the end `client`. */
export const showTcp = async (
  lab: Lab,
  report: Report,
  { address, client, where }: { address: string; client: 'TAP' | 'driver'; where?: string },
): Promise<TcpRates> => {
  const measure = async (way: string, reverse: boolean): Promise<number> => {
    const command = `iperf3 --client ${address} --time ${TCP_SECONDS} --forceflush${reverse ? ' --reverse' : ''}`
    const lines = await run(lab, report, command, where)
    const total = lines
      .map((line) => /(\S+ [KMG]?Bytes) +(\S+) ([KMG]?)bits\/sec +receiver/.exec(line))
      .find((match) => match !== null)
    if (total === undefined) throw new StepFailure(`iperf3 does not say that anything arrived: ${way}`)
    const [, amount, rate, prefix = ''] = total
    const bitsPerSecond = Number(rate) * { '': 1, K: 1e3, M: 1e6, G: 1e9 }[prefix]!
    report.proven(`${way}: ${amount} received, ${formatRate(bitsPerSecond)}`)
    return bitsPerSecond
  }
  const toDriver = await measure('TAP to driver', client === 'driver')
  const fromDriver = await measure('driver to TAP', client === 'TAP')
  return { toDriver, fromDriver }
}

/** A rate for people. */
export const formatRate = (bitsPerSecond: number): string => `${(bitsPerSecond / 1e9).toFixed(2)} Gbit/s`

/** Reads all counters until they add up, and shows them. Fails if they never do. */
export const showCounters = async (read: () => Promise<Counters>, ends: Ends, report: Report): Promise<void> => {
  const deadline = performance.now() + COUNTERS_TIMEOUT_MS
  let counters: Counters
  do {
    counters = await read()
  } while (!addUp(counters) && performance.now() < deadline)
  for (const line of formatCounters(counters, ends)) report.note(line)
  if (!addUp(counters)) throw new StepFailure('the counters do not add up')
  report.proven('they add up')
}
