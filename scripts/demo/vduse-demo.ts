import { describeEnding } from '../lab/ending.ts'
import { kvmObstacle } from '../lab/kvm.ts'
import { bootLab, type KernelName, type Lab, type LabProcess } from '../lab/lab.ts'
import { VDUSE_DRAWING } from './drawings.ts'
import { GuestCard } from './guest-card.ts'
import { type Report, StepFailure } from './report.ts'
import { type Device, run, showCounters, showDevice, showPing, showTcp } from './steps.ts'
import type { LinuxFigures } from './summary.ts'

const TAP = 'tap0'
const DRIVER = 'eth0'
/**
 * The driver's interface moves into a network namespace: otherwise the kernel would deliver to itself, past the card.
 */
const NAMESPACE = 'guest'
const TAP_ADDRESS = '10.0.0.1'
const DRIVER_ADDRESS = '10.0.0.2'

/** An emulated machine on a busy host takes its time. */
const CARD_TIMEOUT_MS = 60_000

/**
 * Boots `kernel` and shows the card of `executable` on it, from its start to its end. Returns what was measured. Throws
 * StepFailure or LabError.
 */
export const runVduseDemo = async (executable: string, kernel: KernelName, report: Report): Promise<LinuxFigures> => {
  report.step('Booting a Debian kernel that has VDUSE')
  for (const line of VDUSE_DRAWING) report.note(line)
  await using lab = await bootLab({ kernel, files: { '/usr/bin/vduse-net': executable } })
  const emulated = lab.accel !== 'kvm'
  report.note(`Linux ${lab.kernelRelease}, ${emulated ? 'emulated: slower than a real machine' : 'under KVM'}`)
  const obstacle = emulated ? kvmObstacle() : null
  if (obstacle !== null) report.note(`faster with KVM: ${obstacle}`)

  report.step(`Starting the card: vduse-net --tap ${TAP}`)
  // What the kernel sends of itself while the driver starts would be dropped by the card, and counted.
  await run(lab, report, 'sysctl -qw net.ipv6.conf.default.disable_ipv6=1')
  const card = startCard(lab, report)
  // If the card dies, its error says more than that of the step that waits for it.
  const measured = await Promise.race([
    showCard(lab, new GuestCard(lab, { tap: TAP, namespace: NAMESPACE, driver: DRIVER }), report),
    card.exited.then((code) => {
      throw new StepFailure(`the card ${describeEnding(code)} by itself`)
    }),
  ])

  report.step('Detaching: SIGTERM')
  card.kill('TERM')
  await showEnd(lab, card, report)
  const what =
    `Linux ${lab.kernelRelease} in QEMU, ` +
    `${emulated ? 'without KVM: the speed of an emulator, not of the card' : 'under KVM'}`
  return { what, ...measured }
}

const startCard = (lab: Lab, report: Report): LabProcess => {
  report.command(`vduse-net --tap ${TAP}`)
  return lab.spawn(`VDUSE_NET_LOG_FORMAT=pretty exec vduse-net --tap ${TAP}`, {
    onLine: (line) => report.output(line),
  })
}

const showCard = async (lab: Lab, card: GuestCard, report: Report): Promise<Omit<LinuxFigures, 'what'>> => {
  await lab.waitFor(`ls -d /sys/class/net/${DRIVER} /run/vduse-net/${TAP}.sock`, { timeoutMs: CARD_TIMEOUT_MS })
  await showAttached(card, report)

  report.step('Giving both ends an address')
  for (const command of [
    `ip addr add ${TAP_ADDRESS}/24 dev ${TAP}`,
    `ip netns add ${NAMESPACE}`,
    `ip link set ${DRIVER} netns ${NAMESPACE}`,
    `ip -n ${NAMESPACE} addr add ${DRIVER_ADDRESS}/24 dev ${DRIVER}`,
    `ip -n ${NAMESPACE} link set ${DRIVER} up`,
  ]) {
    await run(lab, report, command)
  }

  const pingMs = await showPing(lab, report, DRIVER_ADDRESS)

  report.step('TCP through the card, both ways')
  await run(lab, report, `ip netns exec ${NAMESPACE} iperf3 --server --daemon`)
  const tcp = await showTcp(lab, report, { address: DRIVER_ADDRESS, client: 'TAP' })

  report.step('Counters: the interfaces on both sides, and the card between them')
  report.note(`compared: ip -s link show, ${DRIVER} and ${TAP}; GET /v1/stats of the card`)
  await showCounters(() => card.counters(), { driver: DRIVER, tap: TAP }, report)
  return { pingMs, tcp }
}

const showAttached = async (card: GuestCard, report: Report): Promise<void> => {
  const device = await card.get<Device>('/v1/device')
  const { apiVersion, features } = device.vduse!
  const vduse = [`API version ${apiVersion}`, ...features].join(', ')
  const about = [`driver    ${device.driver}, interface ${DRIVER}, MTU ${device.mtu}`, `VDUSE     ${vduse}`]
  showDevice(device, about, report)
  if (device.driver !== 'virtio_vdpa' || !device.linkUp)
    throw new StepFailure('the card is not attached with its link up')
  report.proven('attached')
}

const showEnd = async (lab: Lab, card: LabProcess, report: Report): Promise<void> => {
  const code = await card.exited
  if (code !== 0) throw new StepFailure(`the card ${describeEnding(code)}`)
  const left = await lab.ok(
    `ls -d /dev/vduse/${TAP} /sys/bus/vdpa/devices/* /sys/class/net/${TAP} /run/vduse-net/${TAP}.sock ` +
      `2>/dev/null; ip netns exec ${NAMESPACE} ls -d /sys/class/net/${DRIVER} 2>/dev/null; pidof vduse-net; true`,
  )
  if (left.trim() !== '') throw new StepFailure(`the card has left something behind:\n${left}`)
  const problems = lab.kernelProblems()
  if (problems.length > 0) throw new StepFailure(`the kernel complained (${lab.logFile}):\n${problems.join('\n')}`)
  report.proven(
    `exit code 0; no vDPA device, no ${TAP}, no ${DRIVER}, no socket, no process; no complaint of the kernel`,
  )
}
