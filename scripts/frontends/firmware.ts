/** Firmware with network drivers of its own, the server that it boots from, and the machines that run it. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { LabError } from '../lab/command.ts'
import { ACCEL_ARGS, type Accel } from '../lab/machine.ts'
import { packageFolder } from '../lab/pinned.ts'
import { fetchQemu, type QemuArchitecture } from '../lab/qemu.ts'
import { NativeProcess, until } from './native-process.ts'
import { cardBackend, type QemuCard } from './vhost-qemu.ts'

/** The suite of the firmware: that of the QEMU which runs it. */
const SUITE = 'trixie'

const FIRMWARE_PACKAGES: readonly string[] = ['ovmf', 'u-boot-qemu', 'ipxe', 'ipxe-qemu']

/** A folder with OVMF, U-Boot and iPXE, each where Debian's package has it. */
export const fetchFirmware = (): Promise<string> =>
  packageFolder({
    name: 'firmware',
    suite: SUITE,
    select: async (apt) =>
      (await apt.closure(FIRMWARE_PACKAGES)).filter(({ name }) => FIRMWARE_PACKAGES.includes(name)),
    build: (apt, files, target) => apt.unpack(files, target),
  })

/** A folder with dnsmasq and its libraries. */
export const fetchDnsmasq = (): Promise<string> =>
  packageFolder({
    name: 'dnsmasq',
    suite: SUITE,
    select: async (apt) =>
      (await apt.closure(['dnsmasq-base'])).filter(({ name }) => /^(dnsmasq-base$|lib)/.test(name)),
    build: async (apt, files, target) => {
      await apt.unpack(files, target)
      await rm(join(target, 'usr/share'), { recursive: true, force: true })
    },
  })

/** What a {@link startBootServer} serves, and where. */
export interface BootServerOptions {
  netns: string
  ifname: string
  /** The first three numbers of the addresses that it gives away: `10.80.0`. */
  network: string
  /** The folder of the files that it gives away. */
  folder: string
  /** The name of the file to boot. */
  bootFile: string
  /** Further options of dnsmasq(8). */
  options?: readonly string[]
}

/**
 * Starts Debian's dnsmasq as DHCP and TFTP server of one interface. It logs `sent FILE to ADDRESS` after the last
 * block's receipt.
 */
export const startBootServer = async (options: BootServerOptions): Promise<NativeProcess> => {
  const root = await fetchDnsmasq()
  const { network } = options
  const server = new NativeProcess({
    name: 'dnsmasq',
    netns: options.netns,
    argv: [
      ...[join(root, 'usr/lib64/ld-linux-x86-64.so.2'), '--library-path', join(root, 'usr/lib/x86_64-linux-gnu')],
      ...[join(root, 'usr/sbin/dnsmasq'), '--no-daemon', '--conf-file=/dev/null', '--user=root', '--pid-file'],
      // No name server, and no file of this machine.
      ...['--port=0', '--no-resolv', '--no-hosts', '--no-ping', '--leasefile-ro', '--log-dhcp', '--log-facility=-'],
      ...[
        `--interface=${options.ifname}`,
        '--bind-dynamic',
        `--dhcp-range=${network}.50,${network}.150,255.255.255.0,1h`,
      ],
      ...['--enable-tftp', `--tftp-root=${options.folder}`, `--dhcp-boot=${options.bootFile}`],
      ...(options.options ?? []),
    ],
  })
  try {
    await server.line(/TFTP root is/)
    return server
  } catch (error) {
    await server.stop()
    throw error
  }
}

/** Limit for a firmware's next output. Emulated firmware on a busy machine is slow. */
const FIRMWARE_MS = 240_000

/** A machine that runs a firmware, with its console. */
export interface FirmwareOptions {
  netns: string
  architecture?: QemuArchitecture
  /** The machine and its memory backend, called `ram`: `-machine`. */
  machine: string
  memoryMb?: number
  accel: Accel
  card: QemuCard
  /** Properties of the card, with its model in front: `virtio-net-pci,romfile=`. */
  device: string
  /** Further arguments: the firmware. */
  args: readonly string[]
}

/** A console of a firmware: its output so far, and input to it. */
export class Firmware implements AsyncDisposable {
  readonly process: NativeProcess
  #text: string

  private constructor(process: NativeProcess) {
    this.process = process
    this.#text = ''
  }

  /** Starts QEMU with one network card, its console on standard input and output. */
  static async start(options: FirmwareOptions): Promise<Firmware> {
    const { architecture = 'x86_64', memoryMb = 512, accel } = options
    const qemu = await fetchQemu(architecture)
    let firmware: Firmware | undefined
    const process = new NativeProcess({
      name: `qemu-system-${architecture}`,
      netns: options.netns,
      argv: [
        ...[...qemu, '-nodefaults', '-no-user-config', '-display', 'none', '-machine', options.machine],
        ...(architecture === 'x86_64' ? ACCEL_ARGS[accel] : ['-accel', 'tcg']),
        ...['-object', `memory-backend-memfd,id=ram,size=${memoryMb}M,share=on`, '-m', `${memoryMb}M`],
        ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
        ...cardBackend(options.card),
        ...['-device', `${options.device},netdev=net,mac=02:76:6e:00:00:01`, ...options.args],
      ],
      onOutput: (bytes) => firmware?.take(bytes),
    })
    firmware = new Firmware(process)
    return firmware
  }

  /** Its output since `mark`, without control sequences of a terminal. */
  text(mark = 0): string {
    return Bun.stripANSI(this.#text).slice(mark)
  }

  /** The end of its output so far, as a mark. */
  mark(): number {
    return this.text().length
  }

  take(bytes: Buffer): void {
    this.#text += bytes.toString('latin1')
  }

  /** Types on its console. */
  type(text: string): void {
    this.process.write(text)
  }

  /** Waits for output that matches, past or to come. */
  async says(pattern: RegExp, options: { mark?: number; timeoutMs?: number } = {}): Promise<RegExpExecArray> {
    const { mark = 0, timeoutMs = FIRMWARE_MS } = options
    const found = (): RegExpExecArray | false => {
      const match = pattern.exec(this.text(mark))
      if (match !== null) return match
      if (!this.process.alive)
        throw new LabError(`${this.process.name} ended before it said ${pattern}:\n${this.text()}`)
      return false
    }
    try {
      return await until(`the firmware says ${pattern}`, found, timeoutMs)
    } catch (error) {
      throw new LabError(`${String(error)}; last it said:\n${this.text().slice(-4000)}`)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process.stop()
  }
}
