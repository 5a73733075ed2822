import type { DeviceView, QueueView, StatsView } from '../../src/card/card.ts'
import { answerOf, guestProgram, type Lab, type LabProcess } from './e2e-lab.ts'
import type { ApiAnswer } from './guest/api.ts'
import type { ShellResult } from './lab.ts'

/** How to start a card in the guest. */
export type CardOptions = {
  /** Of the TAP, and so of the device. */
  readonly tap?: string
  /** Further words for the command line. */
  readonly args?: readonly string[]
  /** Tells apart the addresses and namespaces of cards that run at the same time. */
  readonly number?: number
  /** The network namespace of the driver's interface: `driver` and the number unless told. */
  readonly netns?: string
  /** Commands before `vduse-net`, like `ip netns exec x`. */
  readonly prefix?: readonly string[]
}

/** How to ping. */
export type PingOptions = {
  /** 20 unless told. */
  readonly count?: number
  /** Bytes of the whole IP packet, which is not to be fragmented. */
  readonly size?: number
  readonly ipv6?: boolean
  /** Between two of them. Unless told each waits for the answer to the one before. */
  readonly intervalSeconds?: number
  /** For an answer to one, or if there is an interval for the first of all; 5 unless told. */
  readonly patienceSeconds?: number
}

/** How a ping went. */
export type Pinged = { sent: number; received: number }

export type Counted = { packets: number; bytes: number }

/**
 * What an interface, or the card, has counted. Directions of the driver and the card are the driver's, those of the TAP
 * its own.
 */
export type Accounts = {
  driver: { rx: Counted; tx: Counted }
  card: { rx: Counted; tx: Counted }
  tap: { rx: Counted; tx: Counted }
  /** Those that are not 0. */
  drops: Record<string, number>
}

/** How long the program may take for anything, under emulation on a busy machine. */
const PATIENCE_MS = 120_000

const pinged = ({ stdout, stderr }: ShellResult): Pinged => {
  const found = [...stdout.matchAll(/(\d+) packets transmitted, (\d+) received/g)]
  if (found.length === 0) throw new Error(`ping: ${stdout}${stderr}`)
  const sum = (group: number): number => found.reduce((total, match) => total + Number(match[group]), 0)
  return { sent: sum(1), received: sum(2) }
}

/**
 * Runs `ping` with these words, its name first, once for each packet. One ping of several packets that has had an
 * answer waits for the last ones twice as long as the slowest so far took, and a processor that is busy elsewhere takes
 * longer.
 */
export const pingSingly = async (lab: Lab, count: number, words: readonly (string | number)[]): Promise<Pinged> =>
  pinged(await lab.sh(`for run in $(seq ${count}); do ${words.join(' ')} -q -c 1; done`))

/**
 * A card that runs in the guest. {@link wire} gives its network interface a namespace of its own, so that packets
 * between this one's addresses and the TAP's really pass the card. It is stopped at the end of an `await using` block.
 */
export class GuestCard implements AsyncDisposable {
  readonly lab: Lab
  readonly tap: string
  readonly name: string
  /** The network namespace of the driver's interface. */
  readonly netns: string
  /** The addresses at the TAP, and those of the driver. */
  readonly tapIpv4: string
  readonly driverIpv4: string
  readonly tapIpv6: string
  readonly driverIpv6: string
  readonly #words: readonly string[]
  #process!: LabProcess
  #running = false

  private constructor(lab: Lab, options: CardOptions) {
    const { tap = 'tap0', args = [], number = 0, netns = `driver${number}`, prefix = [] } = options
    this.lab = lab
    this.tap = tap
    const nameAt = args.indexOf('--name')
    this.name = nameAt < 0 ? tap : args[nameAt + 1]!
    this.netns = netns
    this.tapIpv4 = `10.9.${number}.1`
    this.driverIpv4 = `10.9.${number}.2`
    this.tapIpv6 = `fd09:${number}::1`
    this.driverIpv6 = `fd09:${number}::2`
    this.#words = [...prefix, 'vduse-net', '--tap', tap, ...args]
  }

  /**
   * {@link start}, and the TAP sends nothing of its own meanwhile. IPv6 does so as soon as the TAP is up, and the card
   * drops and counts what comes before the driver.
   */
  static async startQuietly(lab: Lab, options: CardOptions = {}): Promise<GuestCard> {
    const byDefault = (off: 0 | 1): Promise<string> => lab.ok(`sysctl -qw net.ipv6.conf.default.disable_ipv6=${off}`)
    await byDefault(1)
    try {
      const card = await GuestCard.start(lab, options)
      await lab.ok(`sysctl -qw net.ipv6.conf.${card.tap}.disable_ipv6=0`)
      return card
    } finally {
      await byDefault(0)
    }
  }

  /** Starts one and waits until it serves. */
  static async start(lab: Lab, options: CardOptions = {}): Promise<GuestCard> {
    const card = new GuestCard(lab, options)
    await card.restart()
    return card
  }

  /** The log of the process that runs, or ran last: lines of JSON. */
  get log(): readonly string[] {
    return this.#process.lines
  }

  get process(): LabProcess {
    return this.#process
  }

  get socket(): string {
    return `/run/vduse-net/${this.name}.sock`
  }

  /** Starts the process again after it has ended. */
  async restart(): Promise<void> {
    this.#process = this.lab.spawn(this.#words)
    this.#running = true
    void this.#process.exited.finally(() => {
      this.#running = false
    })
    // The last thing that it does, with or without a driver.
    await this.#process.line(/admin API on/, { timeoutMs: PATIENCE_MS })
  }

  /** A line of the log, past or to come. */
  logged(pattern: RegExp): Promise<string> {
    return this.#process.line(pattern, { timeoutMs: PATIENCE_MS })
  }

  /** The driver's network interface, here or in its namespace. Waits until there is one. */
  async netdev(): Promise<string> {
    // sysfs shows a device's interfaces only where they are.
    const here = `ls /sys/bus/vdpa/devices/${this.name}/virtio*/net`
    const there = `ip -n ${this.netns} -br link | grep -v "^lo " | cut -d " " -f 1`
    return (await this.lab.waitFor(`{ ${here}; ${there}; } 2>/dev/null | grep .`)).trim()
  }

  /** Moves the driver's interface into its namespace and takes it up; its name. */
  async join(): Promise<string> {
    const netdev = await this.netdev()
    const { netns } = this
    await this.lab.ok(
      [
        `{ ip netns list | grep -qw ${netns} || ip netns add ${netns}; }`,
        `ip -n ${netns} link set lo up`,
        `{ ip -n ${netns} link show ${netdev} >/dev/null 2>&1 || ip link set ${netdev} netns ${netns}; }`,
        `ip -n ${netns} link set ${netdev} up`,
      ].join(' && '),
    )
    return netdev
  }

  /**
   * Gives the driver's interface, in its namespace, and the TAP their addresses. Again after either was made anew.
   * Returns the interface's name.
   */
  async wire(): Promise<string> {
    const netdev = await this.join()
    const addresses = [
      `addr replace ${this.driverIpv4}/24 dev ${netdev}`,
      `-6 addr replace ${this.driverIpv6}/64 dev ${netdev} nodad`,
    ]
    await this.lab.ok(addresses.map((words) => `ip -n ${this.netns} ${words}`).join(' && '))
    await this.addressTap()
    return netdev
  }

  /** Gives the TAP its addresses, as its administrator would. */
  async addressTap(): Promise<void> {
    await this.lab.ok(
      [
        `ip addr replace ${this.tapIpv4}/24 dev ${this.tap}`,
        `ip -6 addr replace ${this.tapIpv6}/64 dev ${this.tap} nodad`,
      ].join(' && '),
    )
  }

  /** Runs a command in the driver's namespace; it must succeed. */
  inDriver(command: string): Promise<string> {
    return this.lab.ok(`ip netns exec ${this.netns} ${command}`)
  }

  async api(method: string, path: string, body?: unknown): Promise<ApiAnswer> {
    const words = [this.socket, method, path, ...(body === undefined ? [] : [JSON.stringify(body)])]
    return answerOf<ApiAnswer>(await this.lab.ok(guestProgram('api', ...words)))
  }

  async device(): Promise<DeviceView> {
    return (await this.api('GET', '/v1/device')).body as DeviceView
  }

  async stats(): Promise<StatsView> {
    return (await this.api('GET', '/v1/stats')).body as StatsView
  }

  async queues(): Promise<QueueView[]> {
    return ((await this.api('GET', '/v1/queues')).body as { queues: QueueView[] }).queues
  }

  /** Waits until what a question about the card answers fits; the last answer. */
  async until<T>(ask: () => Promise<T>, fits: (answer: T) => boolean, timeoutMs = PATIENCE_MS): Promise<T> {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const answer = await ask()
      if (fits(answer)) return answer
      if (performance.now() > deadline) throw new Error(`not in ${timeoutMs} ms; the last: ${JSON.stringify(answer)}`)
    }
  }

  /** Waits until packets pass both ways, IPv4 and IPv6. */
  async passes(): Promise<void> {
    for (const address of [this.driverIpv4, this.driverIpv6]) {
      await this.lab.waitFor(`ping -c 1 -W 1 ${address}`, { timeoutMs: PATIENCE_MS })
    }
  }

  /** `ping` from the TAP's side. */
  async ping(options: PingOptions = {}): Promise<Pinged> {
    const { count = 20, size, ipv6 = false, intervalSeconds, patienceSeconds = 5 } = options
    const headers = ipv6 ? 48 : 28
    const whole = size === undefined ? [] : ['-M', 'do', '-s', size - headers]
    const words = ['-W', patienceSeconds, ...whole, ipv6 ? this.driverIpv6 : this.driverIpv4]
    if (intervalSeconds === undefined) return pingSingly(this.lab, count, ['ping', ...words])
    return pinged(await this.lab.sh(['ping', '-q', '-c', count, '-i', intervalSeconds, ...words].join(' ')))
  }

  /** Packets and bytes as everybody between the driver and the host has counted them since the card was made. */
  async accounts(): Promise<Accounts> {
    const netdev = await this.netdev()
    const driver = await this.inDriver(`ip -j -s link show ${netdev}`)
    const tap = await this.lab.ok(`ip -j -s link show ${this.tap}`)
    const { rx, tx, drops } = await this.stats()
    const counted = (json: string): { rx: Counted; tx: Counted } => {
      const [link] = JSON.parse(json) as [{ stats64: { rx: Counted; tx: Counted } }]
      const pick = ({ packets, bytes }: Counted): Counted => ({ packets, bytes })
      return { rx: pick(link.stats64.rx), tx: pick(link.stats64.tx) }
    }
    return {
      driver: counted(driver),
      card: { rx: { packets: rx.packets, bytes: rx.bytes }, tx: { packets: tx.packets, bytes: tx.bytes } },
      tap: counted(tap),
      drops: Object.fromEntries(Object.entries(drops).filter(([, count]) => count > 0)),
    }
  }

  /** Processor time that the process takes, over three seconds: percent of one processor. */
  async cpuPercent(): Promise<number> {
    const ticks = 'cut -d " " -f 14,15 "/proc/$(pidof -s vduse-net)/stat" | tr " " "\\n"'
    const [user = 0, system = 0, userLater = 0, systemLater = 0] = (await this.lab.ok(`${ticks}; sleep 3; ${ticks}`))
      .trim()
      .split('\n')
      .map(Number)
    // Ticks of 10 ms.
    return (userLater + systemLater - user - system) / 3
  }

  /** Ends it with a signal; its exit code, and how long that took. */
  async end(signal: 'TERM' | 'INT' | 'KILL' = 'TERM'): Promise<{ code: number; ms: number }> {
    const started = performance.now()
    this.#process.kill(signal)
    const code = await this.#process.exited
    return { code, ms: performance.now() - started }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#running) await this.end()
    await this.lab.sh(`ip netns del ${this.netns}; ip link del ${this.tap}`)
  }
}
