import { constants } from 'node:os'
import { UserError } from '../../../src/base/errors.ts'
import { readCommandLine } from '../../../src/cli/command-line.ts'
import type { Config } from '../../../src/cli/config.ts'
import type { Probes } from '../../../src/cli/doctor.ts'
import type { Host } from '../../../src/cli/host.ts'
import type { ControlQueueVerdict } from '../../../src/transport/vduse/control-queue-verdict.ts'

/** A machine of the test's making. */
export interface Machine {
  readonly env?: Readonly<Record<string, string>>
  /** Texts by path; a path that is missing cannot be read. */
  readonly files?: Readonly<Record<string, string>>
  readonly hostname?: string
  readonly programName?: string
  /** Errno of opening a device node; absent ones open. */
  readonly nodes?: Readonly<Record<string, keyof typeof constants.errno>>
  /** Answer of loading the eBPF program: works where absent, cannot be tried where null. */
  readonly steering?: keyof typeof constants.errno | null
  /** What VDUSE says of a control queue: refuses it where absent, cannot be asked where null. */
  readonly controlQueue?: ControlQueueVerdict | null
  /** 0 to 7 where absent; the kernel does not tell where null. */
  readonly cpus?: readonly number[] | null
}

/** Files of a host on which a card could run. */
export const goodFiles: Readonly<Record<string, string>> = {
  '/': '',
  '.': '',
  '/etc/machine-id': '0123456789abcdef0123456789abcdef\n',
  '/sys/module/vduse': '',
  '/sys/module/virtio_vdpa': '',
  '/sys/module/vhost_vdpa': '',
  '/sys/bus/virtio/drivers/virtio_net': '',
  '/proc/self/status': 'Name:\tvduse-net\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n',
  '/proc/self/uid_map': '         0          0 4294967295\n',
  '/proc/sys/net/core/netdev_budget': '300\n',
}

export const probesOf = (machine: Machine): Probes => {
  const files = machine.files ?? goodFiles
  const errnoOf = (name: keyof typeof constants.errno | undefined): number =>
    name === undefined ? 0 : constants.errno[name]
  return {
    readText: (path) => files[path] ?? null,
    exists: (path) => path in files,
    tryOpen: (path) => errnoOf(machine.nodes?.[path]),
    kernelRelease: () => '6.1.0-test',
    trySteering: () => (machine.steering === null ? null : errnoOf(machine.steering)),
    vduseControlQueue: () => (machine.controlQueue === undefined ? 'refused' : machine.controlQueue),
  }
}

/** Everything that a command line leads to. */
export interface Outcome {
  readonly config: Config | null
  readonly warnings: readonly string[]
  readonly out: string
  readonly exitCode: number
  /** The two lines of a refusal. */
  readonly message: string
  readonly hint: string
}

/** Reads a command line on a machine. */
export const read = async (words: readonly string[], machine: Machine = {}): Promise<Outcome> => {
  let out = ''
  const warned: string[] = []
  const host: Host = {
    env: machine.env ?? {},
    out: (text) => {
      out += text
    },
    warn: (text) => warned.push(text),
    readText: (path) => (machine.files ?? goodFiles)[path] ?? null,
    programName: machine.programName ?? 'vduse-net',
    hostname: () => machine.hostname ?? 'testhost',
    allowedCpus: () => (machine.cpus === undefined ? [0, 1, 2, 3, 4, 5, 6, 7] : machine.cpus),
  }
  const nothing = { config: null, warnings: warned, message: '', hint: '' }
  try {
    const invocation = await readCommandLine(words, host, probesOf(machine))
    if (invocation.kind === 'done') return { ...nothing, out, exitCode: invocation.exitCode }
    return { ...nothing, out, exitCode: 0, config: invocation.config, warnings: invocation.warnings }
  } catch (error) {
    if (!(error instanceof UserError)) throw error
    return { ...nothing, out, exitCode: error.exitCode, message: error.message, hint: error.hint }
  }
}

/** Output with each check and fix on one line, however it was wrapped. */
export const unwrapped = (out: string): string => out.replace(/\n {9,}(?=\S)/g, ' ')
