import { LabError } from '../lab/command.ts'
import { NativeProcess } from './native-process.ts'
import { fetchDpdk, TESTPMD_ENVIRONMENT, testpmdProgram } from './packages.ts'

/**
 * What testpmd does with packets: `txonly` makes them, `rxonly` drops them, `io` passes them on, the rest send them
 * back changed.
 */
export type ForwardMode = 'txonly' | 'rxonly' | 'io' | 'macswap' | '5tswap' | 'csum'

/** What to start. */
export interface TestpmdOptions {
  /** For error messages. */
  name: string
  netns: string
  /** Its devices, which become ports 0, 1, ... */
  vdevs: readonly string[]
  /** Processors: one for the prompt, which only waits, and one for each forwarding thread, which polls. */
  lcores: { main: number; forwarding: readonly number[] }
  /** Queue pairs of each port. */
  queues?: number
  memoryMb?: number
  /** Further options behind the `--`. */
  args?: readonly string[]
}

/** Counters of a port since it was started. */
export interface PortStats {
  rxPackets: number
  rxMissed: number
  rxBytes: number
  txPackets: number
  txErrors: number
  txBytes: number
}

/** What a port has passed on between `start` and `stop`. `dropped` did not fit into its ring. */
export interface ForwardStats {
  rxPackets: number
  rxDropped: number
  txPackets: number
  txDropped: number
}

/** A virtio driver in userspace on a vhost-user socket. DPDK's "virtio_user". */
export interface VirtioUserOptions {
  socket: string
  queueSize?: number
  queues?: number
  packed?: boolean
  inOrder?: boolean
  mergeable?: boolean
  vectorized?: boolean
  /** It listens on the socket and the device connects. */
  server?: boolean
  mac?: string
}

const flag = (name: string, value: boolean | undefined): string[] =>
  value === undefined ? [] : [`${name}=${value ? 1 : 0}`]

/** The words for a virtio_user device. */
export const virtioUser = (options: VirtioUserOptions): string =>
  [
    'net_virtio_user0',
    `path=${options.socket}`,
    `queue_size=${options.queueSize ?? 1024}`,
    `queues=${options.queues ?? 1}`,
    ...flag('packed_vq', options.packed),
    ...flag('in_order', options.inOrder),
    ...flag('mrg_rxbuf', options.mergeable),
    ...flag('vectorized', options.vectorized),
    ...flag('server', options.server),
    ...(options.mac === undefined ? [] : [`mac=${options.mac}`]),
  ].join(',')

/** The words for DPDK's own vhost-user device, which the card is compared with. */
export const vhostPort = (options: { socket: string; queues?: number }): string =>
  `net_vhost0,iface=${options.socket},queues=${options.queues ?? 1}`

/** The words for a TAP of DPDK's. It is made by the program and goes with it. */
export const tapPort = (ifname: string): string => `net_tap0,iface=${ifname}`

/** Starts testpmd and waits for nothing. */
const launchTestpmd = async (options: TestpmdOptions): Promise<NativeProcess> => {
  const { main, forwarding } = options.lcores
  if (forwarding.includes(main)) throw new LabError(`${options.name}: lcore ${main} is wanted twice`)
  const queues = options.queues ?? 1
  return new NativeProcess({
    name: options.name,
    netns: options.netns,
    env: TESTPMD_ENVIRONMENT,
    argv: [
      ...testpmdProgram(await fetchDpdk()),
      ...['-l', [main, ...forwarding].join(','), `--main-lcore=${main}`],
      // Needs no huge pages, no devices of this machine, no folder of its own.
      ...['--no-huge', '-m', String(options.memoryMb ?? 256), '--no-pci', '--no-shconf', '--no-telemetry'],
      ...options.vdevs.flatMap((vdev) => ['--vdev', vdev]),
      ...['--', '-i', '--total-num-mbufs=32768', `--nb-cores=${forwarding.length}`],
      ...[`--rxq=${queues}`, `--txq=${queues}`, ...(options.args ?? [])],
    ],
  })
}

/** DPDK's packet generator and forwarder, driven by its prompt. */
export class Testpmd implements AsyncDisposable {
  readonly process: NativeProcess
  #marks = 0

  private constructor(process: NativeProcess) {
    this.process = process
  }

  /** Starts it and waits for its prompt. A virtio_user device has then met its backend. */
  static async start(options: TestpmdOptions): Promise<Testpmd> {
    const testpmd = new Testpmd(await launchTestpmd(options))
    try {
      await testpmd.command('show config fwd')
      return testpmd
    } catch (error) {
      await testpmd.stop()
      throw error
    }
  }

  /** Runs a command of the prompt and returns what was printed until it was done. */
  async command(text: string): Promise<string[]> {
    const from = this.process.lineCount
    // Nothing tells the end of a command's output, but what is typed is echoed once the command before it is done.
    const mark = `mark${++this.#marks}`
    this.process.write(`${text}\n${mark}\n`)
    await this.process.line(new RegExp(`${mark}\\b`), { from })
    return this.process.linesSince(from)
  }

  /** Starts forwarding in the mode, with frames of `frameBytes` where it makes some. */
  async startForwarding(mode: ForwardMode, frameBytes?: number): Promise<void> {
    await this.command(`set fwd ${mode}`)
    if (frameBytes !== undefined) await this.command(`set txpkts ${frameBytes}`)
    const output = await this.command('start')
    if (!output.some((line) => line.includes('packet forwarding - ports='))) {
      throw new LabError(`${this.process.name}: does not forward:\n${output.join('\n')}`)
    }
  }

  /** Stops forwarding and tells what each port did. */
  async stopForwarding(): Promise<ForwardStats[]> {
    const output = (await this.command('stop')).join('\n')
    const ports = output.split(/Forward statistics for port \d+/).slice(1)
    return ports.map((text) => ({
      rxPackets: numberAfter('RX-packets', text),
      rxDropped: numberAfter('RX-dropped', text),
      txPackets: numberAfter('TX-packets', text),
      txDropped: numberAfter('TX-dropped', text),
    }))
  }

  /** A port's counters now. */
  async stats(port = 0): Promise<PortStats> {
    const text = (await this.command(`show port stats ${port}`)).join('\n')
    return {
      rxPackets: numberAfter('RX-packets', text),
      rxMissed: numberAfter('RX-missed', text),
      rxBytes: numberAfter('RX-bytes', text),
      txPackets: numberAfter('TX-packets', text),
      txErrors: numberAfter('TX-errors', text),
      txBytes: numberAfter('TX-bytes', text),
    }
  }

  /** Ends it as a user would: stops and closes the ports, which notifies the backend. */
  async quit(): Promise<void> {
    this.process.write('quit\n')
    const code = await this.process.ended()
    if (code !== 0) {
      throw new LabError(`${this.process.name} ${this.process.ending}; last it said:\n${this.process.tail()}`)
    }
  }

  /** Kills it. */
  stop(): Promise<void> {
    return this.process.stop()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}

const numberAfter = (label: string, text: string): number => {
  const match = new RegExp(`${label}:\\s+(\\d+)`).exec(text)
  if (match === null) throw new LabError(`testpmd printed no ${label}:\n${text}`)
  return Number(match[1])
}

/** Starts testpmd on a virtio_user device. */
export const startVirtioUser = (
  options: VirtioUserOptions & Pick<TestpmdOptions, 'netns' | 'lcores' | 'args' | 'memoryMb'>,
): Promise<Testpmd> =>
  Testpmd.start({
    name: 'testpmd (virtio_user)',
    netns: options.netns,
    lcores: options.lcores,
    vdevs: [virtioUser(options)],
    queues: options.queues ?? 1,
    ...(options.args === undefined ? {} : { args: options.args }),
    ...(options.memoryMb === undefined ? {} : { memoryMb: options.memoryMb }),
  })

/** A vhost-user device of DPDK's on a TAP of DPDK's. */
export interface DpdkBackendOptions extends Pick<TestpmdOptions, 'netns' | 'lcores' | 'queues'> {
  socket: string
  ifname: string
}

const backendOptions = (options: DpdkBackendOptions): TestpmdOptions => ({
  name: 'testpmd (vhost, tap)',
  netns: options.netns,
  lcores: options.lcores,
  vdevs: [vhostPort(options), tapPort(options.ifname)],
  queues: options.queues ?? 1,
})

/** Starts one and waits for nothing. */
export const launchDpdkBackend = (options: DpdkBackendOptions): Promise<NativeProcess> =>
  launchTestpmd(backendOptions(options))

/** One that forwards between its socket and its interface. */
export class DpdkBackend implements AsyncDisposable {
  readonly testpmd: Testpmd

  private constructor(testpmd: Testpmd) {
    this.testpmd = testpmd
  }

  /** Starts it listening on the socket. The interface is there and up when this returns. */
  static async start(options: DpdkBackendOptions): Promise<DpdkBackend> {
    return new DpdkBackend(await Testpmd.start(backendOptions(options)))
  }

  /**
   * Waits for a frontend whose driver is ready, and forwards. If forwarding begins earlier, it never polls the queues.
   */
  async forward(): Promise<void> {
    await this.testpmd.process.line(/virtio is now ready for processing/)
    await this.testpmd.startForwarding('io')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.testpmd.stop()
  }
}
