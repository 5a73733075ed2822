import { bootLab, type KernelName, type Lab, type LabProcess } from '../lab/lab.ts'
import { addUp, type Counters, formatCounters } from './counters.ts'
import { GuestCard } from './guest-card.ts'
import { type Report, StepFailure } from './report.ts'

const TAP = 'tap0'
const DRIVER = 'eth0'
/** The driver's interface moves into a network namespace: otherwise the kernel would deliver to itself, past the card. */
const NAMESPACE = 'guest'
const TAP_ADDRESS = '10.0.0.1'
const DRIVER_ADDRESS = '10.0.0.2'

const PINGS = 5
const TCP_SECONDS = 4
/** An emulated machine on a busy host takes its time. */
const CARD_TIMEOUT_MS = 60_000
/** Interfaces and card count the last packets at slightly different times, the driver when it cleans up behind itself. */
const COUNTERS_TIMEOUT_MS = 15_000

/** Of GET /v1/device, what is shown. */
type Device = {
  readonly name: string
  readonly mac: string
  readonly mtu: number
  readonly driver: string | null
  readonly linkUp: boolean
  readonly status: { readonly names: readonly string[] }
  readonly features: { readonly negotiated: readonly string[] }
  readonly vduse: { readonly apiVersion: number; readonly features: readonly string[] }
}

/** Boots `kernel` and shows the card of `executable` on it, from its start to its end. Throws StepFailure or LabError. */
export const runDemo = async (executable: string, kernel: KernelName, report: Report): Promise<void> => {
  report.step('Booting a Debian kernel that has VDUSE')
  await using lab = await bootLab({ kernel, files: { '/usr/bin/vduse-net': executable } })
  report.note(
    `Linux ${lab.kernelRelease}, ${lab.accel === 'kvm' ? 'under KVM' : 'emulated: slower than a real machine'}`,
  )

  report.step(`Starting the card: vduse-net --tap ${TAP}`)
  const card = startCard(lab, report)
  // The end of a card that dies says more than the step that then waits in vain.
  await Promise.race([
    showCard(lab, new GuestCard(lab, { tap: TAP, namespace: NAMESPACE, driver: DRIVER }), report),
    card.exited.then((code) => {
      throw new StepFailure(`the card ended by itself with exit code ${code}`)
    }),
  ])

  report.step('Detaching: SIGTERM')
  card.kill('TERM')
  await showEnd(lab, card, report)
}

const startCard = (lab: Lab, report: Report): LabProcess => {
  report.command(`vduse-net --tap ${TAP}`)
  return lab.spawn(`VDUSE_NET_LOG_FORMAT=pretty exec vduse-net --tap ${TAP}`, {
    onLine: (line) => report.output(line),
  })
}

const showCard = async (lab: Lab, card: GuestCard, report: Report): Promise<void> => {
  await lab.waitFor(`ls -d /sys/class/net/${DRIVER} /run/vduse-net/${TAP}.sock`, { timeoutMs: CARD_TIMEOUT_MS })
  await showDevice(card, report)

  report.step('Giving both ends an address')
  await runAll(lab, report, [
    `ip addr add ${TAP_ADDRESS}/24 dev ${TAP}`,
    `ip netns add ${NAMESPACE}`,
    `ip link set ${DRIVER} netns ${NAMESPACE}`,
    `ip -n ${NAMESPACE} addr add ${DRIVER_ADDRESS}/24 dev ${DRIVER}`,
    `ip -n ${NAMESPACE} link set ${DRIVER} up`,
  ])

  report.step('Ping through the card')
  const ping = await run(lab, report, `ping -c ${PINGS} -i 0.2 -w 30 ${DRIVER_ADDRESS}`)
  if (!ping.some((line) => line.includes(` ${PINGS} received, 0% packet loss`))) {
    throw new StepFailure('pings were lost')
  }
  report.proven(`${PINGS} of ${PINGS} answered`)

  report.step('TCP through the card, both ways')
  await run(lab, report, `ip netns exec ${NAMESPACE} iperf3 --server --daemon`)
  for (const [way, flag] of [
    ['TAP to driver', ''],
    ['driver to TAP', ' --reverse'],
  ] as const) {
    const lines = await run(lab, report, `iperf3 --client ${DRIVER_ADDRESS} --time ${TCP_SECONDS} --forceflush${flag}`)
    const total = lines.map((line) => /(\S+ [KMG]?Bytes) +(\S+ [KMG]?bits\/sec) +receiver/.exec(line)).find(Boolean)
    if (!total) throw new StepFailure(`iperf3 does not say that anything arrived: ${way}`)
    report.proven(`${way}: ${total[1]} received, ${total[2]}`)
  }

  await showCounters(card, report)
}

const showDevice = async (card: GuestCard, report: Report): Promise<void> => {
  const device = await card.get<Device>('/v1/device')
  const { status, features, vduse } = device
  report.note(`name      ${device.name}`)
  report.note(`driver    ${device.driver}, interface ${DRIVER}, MTU ${device.mtu}`)
  report.note(`MAC       ${device.mac}`)
  report.note(
    `VDUSE     API version ${vduse.apiVersion}${vduse.features.length > 0 ? `, ${vduse.features.join(', ')}` : ''}`,
  )
  report.note(`status    ${status.names.join(' ')}, link ${device.linkUp ? 'up' : 'down'}`)
  for (const [index, line] of wrapped(features.negotiated, 88).entries()) {
    report.note(`${index === 0 ? 'features  ' : '          '}${line}`)
  }
  if (device.driver !== 'virtio_vdpa' || !device.linkUp)
    throw new StepFailure('the card is not attached with its link up')
  report.proven('attached')
}

const showCounters = async (card: GuestCard, report: Report): Promise<void> => {
  report.step('Counters: the interfaces on both sides, and the card between them')
  report.note(`compared: ip -s link show, ${DRIVER} and ${TAP}; GET /v1/stats of the card`)
  const deadline = performance.now() + COUNTERS_TIMEOUT_MS
  let counters: Counters
  do {
    counters = await card.counters()
  } while (!addUp(counters) && performance.now() < deadline)
  for (const line of formatCounters(counters)) report.note(line)
  if (!addUp(counters)) throw new StepFailure('the counters do not add up')
  report.proven('they add up')
}

const showEnd = async (lab: Lab, card: LabProcess, report: Report): Promise<void> => {
  const code = await card.exited
  if (code !== 0) throw new StepFailure(`the card ended with exit code ${code}`)
  const left = await lab.ok(
    `ls -d /dev/vduse/${TAP} /sys/bus/vdpa/devices/* /sys/class/net/${TAP} /run/vduse-net/${TAP}.sock 2>/dev/null; ip netns exec ${NAMESPACE} ls -d /sys/class/net/${DRIVER} 2>/dev/null; pidof vduse-net; true`,
  )
  if (left.trim() !== '') throw new StepFailure(`the card has left something behind:\n${left}`)
  const problems = lab.kernelProblems()
  if (problems.length > 0) throw new StepFailure(`the kernel complained (${lab.logFile}):\n${problems.join('\n')}`)
  report.proven(
    `exit code 0; no vDPA device, no ${TAP}, no ${DRIVER}, no socket, no process; the kernel has nothing to complain of`,
  )
}

/** Runs a command of the guest and shows it and what it says, as it says it. Returns its lines. */
const run = async (lab: Lab, report: Report, command: string): Promise<readonly string[]> => {
  report.command(command)
  const child = lab.spawn(command, { onLine: (line) => report.output(line) })
  const code = await child.exited
  if (code !== 0) throw new StepFailure(`${command}: exit code ${code}`)
  return child.lines
}

const runAll = async (lab: Lab, report: Report, commands: readonly string[]): Promise<void> => {
  for (const command of commands) await run(lab, report, command)
}

/** Words in lines of at most `width` characters. */
const wrapped = (words: readonly string[], width: number): string[] => {
  const lines: string[] = []
  for (const word of words) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`
    else lines.push(word)
  }
  return lines
}
