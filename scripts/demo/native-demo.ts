import { existsSync, readFileSync } from 'node:fs'
import { watch } from '../frontends/meter.ts'
import { type NativeProcess, until } from '../frontends/native-process.ts'
import { NativeRig } from '../frontends/native-rig.ts'
import { startVirtioUser, type Testpmd } from '../frontends/testpmd.ts'
import { startUml } from '../frontends/uml.ts'
import { type CardStats, type Counters, countedSince, type EndCounters, endCounters } from './counters.ts'
import { type Report, StepFailure } from './report.ts'
import { type Device, run, showCounters, showDevice, showPing, showTcp } from './steps.ts'
import { formatPackets, type LinuxFigures, type NativeFigures, type PacketFigures } from './summary.ts'

const TAP = 'tap0'
const DRIVER = 'eth0'
const TAP_ADDRESS = '10.0.0.1'
const DRIVER_ADDRESS = '10.0.0.2'

const FRAME_BYTES = 64
const PACKET_SECONDS = 3

/** Where a command runs. */
const HOST = 'host'
const GUEST = 'uml'

/** The processors that this process may use. Cpus_allowed_list in proc(5): `0-3,8`. */
const processors = (): number[] => {
  const [, list = ''] = /^Cpus_allowed_list:\s+(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
  return list.split(',').flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number)
    return Array.from({ length: last - first + 1 }, (_, index) => first + index)
  })
}

/** A card on this machine, with what can be asked about it. */
type Card = {
  readonly rig: NativeRig
  readonly process: NativeProcess
  readonly socket: string
  readonly admin: string
}

/**
 * Shows the card on this machine: behind it first a Linux kernel that is a process, then a driver of DPDK's. All of it
 * in a network namespace of its own. Returns what was measured. Throws StepFailure or LabError.
 */
export const runNativeDemo = async (report: Report): Promise<NativeFigures> => {
  using rig = await NativeRig.open()

  report.step(`Starting the card: vduse-net --tap ${TAP} --socket-path SOCKET`)
  await using card = await startCard(rig, report)
  const measured = await Promise.race([
    showFrontends(card, report),
    card.process.exited.then(() => {
      throw new StepFailure(`the card ${card.process.ending} by itself`)
    }),
  ])

  report.step('The end: SIGTERM')
  card.process.signal('SIGTERM')
  await showEnd(card, report)
  return measured
}

const startCard = async (rig: NativeRig, report: Report): Promise<Card & AsyncDisposable> => {
  const socket = rig.socket()
  const admin = rig.socket()
  report.command(`vduse-net --tap ${TAP} --socket-path ${socket} --admin unix:${admin}`, HOST)
  const { process } = await rig.device({
    ifname: TAP,
    socket,
    admin: `unix:${admin}`,
    // Not the one on which a driver will poll.
    cpu: processors()[0]!,
    args: ['--log-format', 'pretty'],
    onLine: (line) => report.output(line),
  })
  return { rig, process, socket, admin, [Symbol.asyncDispose]: () => process.stop() }
}

const showFrontends = async (card: Card, report: Report): Promise<NativeFigures> => {
  const linux = await showUml(card, report)
  const packets = await showDpdk(card, report)
  return { ...linux, packets }
}

/** JSON of a GET on the card's socket. */
const get = async <T>(card: Card, path: string): Promise<T> => {
  const answer = await fetch(`http://localhost${path}`, { unix: card.admin })
  return (await answer.json()) as T
}

const hostRun = (card: Card, report: Report, words: string): void => {
  report.command(`ip ${words}`, HOST)
  card.rig.ip(words)
}

/**
 * The counters of card and TAP, with those of a driver. They are not read at the same instant, so a comparison is
 * repeated.
 */
const counters = async (card: Card, driver: EndCounters): Promise<Counters> => ({
  driver,
  card: await get<CardStats>(card, '/v1/stats'),
  tap: endCounters(JSON.parse(card.rig.ip(`-s -j link show ${TAP}`))),
})

const showUml = async (card: Card, report: Report): Promise<LinuxFigures> => {
  report.step('Booting User Mode Linux on it: a whole Linux kernel that is a process of this machine')
  await using uml = await startUml({ netns: card.rig.netns, sockets: [card.socket] })
  const { guest } = uml
  report.note(`Linux ${guest.kernelRelease}`)
  const device = await get<Device>(card, '/v1/device')
  showDevice(device, [`driver    virtio_net of User Mode Linux, interface ${DRIVER}, MTU ${device.mtu}`], report)
  if (!device.linkUp) throw new StepFailure('the link is down')
  report.proven('attached')

  report.step('Giving both ends an address')
  hostRun(card, report, `addr add ${TAP_ADDRESS}/24 dev ${TAP}`)
  await run(guest, report, `ip addr add ${DRIVER_ADDRESS}/24 dev ${DRIVER}`, GUEST)
  await run(guest, report, `ip link set ${DRIVER} up`, GUEST)
  await guest.waitFor(`ip link show ${DRIVER} | grep -q LOWER_UP`)

  const pingMs = await showPing(guest, report, TAP_ADDRESS, GUEST)

  report.step('TCP through the card, both ways')
  report.command(`iperf3 --server --bind ${TAP_ADDRESS}`, HOST)
  await using server = card.rig.start(
    'iperf3',
    card.rig.guestProgram('iperf3', '--server', '--forceflush', '--bind', TAP_ADDRESS),
  )
  await server.line(/Server listening/)
  const tcp = await showTcp(guest, report, { address: TAP_ADDRESS, client: 'driver', where: GUEST })

  report.step('Counters: the interfaces on both sides, and the card between them')
  const read = async (): Promise<Counters> =>
    counters(card, endCounters(JSON.parse(await guest.ok(`ip -s -j link show ${DRIVER}`))))
  await showCounters(read, { driver: DRIVER, tap: TAP }, report)
  const problems = guest.kernelProblems()
  if (problems.length > 0) throw new StepFailure(`the kernel complained (${guest.logFile}):\n${problems.join('\n')}`)
  return {
    what: `User Mode Linux ${guest.kernelRelease}, and DPDK, as processes of this machine: the speed of the card on it`,
    pingMs,
    tcp,
  }
}

const showDpdk = async (card: Card, report: Report): Promise<PacketFigures | null> => {
  report.step(
    `The next front-end: DPDK's virtio driver, sending ${FRAME_BYTES} B packets as fast as the card takes them`,
  )
  const [main, forwarding] = processors()
  if (main === undefined || forwarding === undefined) {
    report.note("not shown: that driver polls, and needs a processor besides the card's; this machine has one")
    return null
  }
  const from = card.process.lineCount
  await using driver = await startVirtioUser({
    netns: card.rig.netns,
    socket: card.socket,
    lcores: { main, forwarding: [forwarding] },
  })
  await card.process.line(/driver is up/, { from })
  const before = await counters(card, await driverCounters(driver))
  await driver.startForwarding('txonly', FRAME_BYTES)
  const tapReceived = (): number => card.rig.counters(TAP).rxPackets
  await until('packets flow', () => tapReceived() > before.tap.rx.packets)
  const total = { seconds: 0, count: 0, cpuNs: 0 }
  for (let second = 1; second <= PACKET_SECONDS; second++) {
    const { seconds, count, cpuNs } = await watch(card.process.pid, 1, tapReceived)
    report.output(
      `second ${second}: ${TAP} received ${count.toLocaleString('en-US')} packets; the card used ` +
        `${(cpuNs / 1e9).toFixed(2)} s of processor time`,
    )
    total.seconds += seconds
    total.count += count
    total.cpuNs += cpuNs
  }
  await driver.stopForwarding()
  const figures: PacketFigures = {
    frameBytes: FRAME_BYTES,
    packetsPerSecond: total.count / total.seconds,
    cpuNsPerPacket: total.cpuNs / total.count,
  }
  report.proven(`packets out of ${TAP}: ${formatPackets(figures)}`)

  report.step('Counters: what the driver sent, what the card took, what came out')
  const read = async (): Promise<Counters> => countedSince(before, await counters(card, await driverCounters(driver)))
  await showCounters(read, { driver: 'testpmd', tap: TAP }, report)
  await driver.quit()
  return figures
}

const driverCounters = async (driver: Testpmd): Promise<EndCounters> => {
  const { rxPackets, rxBytes, txPackets, txBytes } = await driver.stats()
  return { rx: { packets: rxPackets, bytes: rxBytes }, tx: { packets: txPackets, bytes: txBytes } }
}

const showEnd = async (card: Card, report: Report): Promise<void> => {
  const code = await card.process.ended()
  if (code !== 0) throw new StepFailure(`the card ${card.process.ending}`)
  const left = [
    ...card.rig.interfaces().filter((name) => name !== 'lo'),
    ...[card.socket, card.admin].filter((path) => existsSync(path)),
  ]
  if (left.length > 0) throw new StepFailure(`the card has left something behind: ${left.join(' ')}`)
  report.proven(`exit code 0; no ${TAP}, no socket, no process`)
}
