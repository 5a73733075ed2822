import { closeSync, existsSync, openSync, unlinkSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Agent } from '../lab/agent.ts'
import { LabError } from '../lab/command.ts'
import { Console } from '../lab/console.ts'
import { describeEnding } from '../lab/ending.ts'
import { baseImage, bootImage, type GuestFiles } from '../lab/initramfs.ts'
import { Lab } from '../lab/lab.ts'
import { temporaryFolder } from '../lab/temporary.ts'
import { fetchUserland } from '../lab/userland.ts'
import { patiently } from '../patience.ts'
import { NativeProcess, within } from './native-process.ts'
import { fetchUml } from './packages.ts'

/** What the tests in it need; its kernel has no VDUSE. */
const MODULES = ['virtio_net', 'ipv6', 'dummy', 'bridge', 'veth', '8021q', 'af_packet'] as const

/** It is up in a second; a machine that is busy otherwise needs patience. */
const BOOT_TIMEOUT_MS = 180_000

/** What to boot. */
export interface UmlOptions {
  netns: string
  /** vhost-user sockets of network devices, which must be listening: eth0, eth1, in this order. */
  sockets: readonly string[]
  memoryMb?: number
  /** Processor to which its own is bound. */
  cpu?: number
  files?: GuestFiles
  /** Gets each line of its console. */
  log?: (line: string) => void
}

/** A whole Linux that is a process of this machine, with a virtio_net driver on vhost-user sockets. */
export interface Uml extends AsyncDisposable {
  /** Runs commands in it. */
  readonly guest: Lab
  readonly process: NativeProcess
  /** Ends it at once. */
  stop: () => Promise<void>
}

/**
 * The kernel parameters of a User Mode Linux, which keeps notes of itself in `folder`; virtio_uml.device is a socket
 * and a virtio device id (VIRTIO 1.2 §5: 1 is a network card).
 */
const parameters = (options: UmlOptions, folder: string): string[] => [
  `uml_dir=${folder}`,
  `mem=${options.memoryMb ?? 256}M`,
  'initrd=/proc/self/fd/4',
  'rdinit=/init',
  'loglevel=5',
  'panic=-1',
  ...['con=null', 'con0=null,fd:1', 'ssl=null', 'ssl0=fd:3', 'lab.agent=/dev/ttyS0'],
  ...options.sockets.map((socket) => `virtio_uml.device=${socket}:1`),
  'lab.modules=virtio_net,ipv6,af_packet',
]

/**
 * Boots a User Mode Linux and waits for its agent. It ends with `stop`, at the end of an `await using` block, or with
 * this process.
 */
export const startUml = async (options: UmlOptions): Promise<Uml> => {
  const root = await fetchUml()
  const modules = join(root, 'usr/lib/uml/modules')
  const [release] = await readdir(modules)
  if (release === undefined) throw new LabError(`${modules}: holds no modules`, 'remove it and try again')
  const kernel = { release, modules: join(modules, release) }
  const base = await baseImage(kernel, await fetchUserland(), MODULES)
  for (const socket of options.sockets) {
    // The driver gives up on a card that is not there, and the boot goes on without it.
    if (!existsSync(socket)) throw new LabError(`${socket}: no such socket`, 'start the device first')
  }

  const folder = temporaryFolder(tmpdir(), 'vduse-net-uml-')
  const imagePath = join(folder.path, 'initramfs')
  await bootImage(imagePath, kernel, base, [], {
    '/usr/sbin/ethtool': join(root, 'sbin/ethtool'),
    ...options.files,
  })
  const image = openSync(imagePath, 'r')
  unlinkSync(imagePath)
  const console = new Console(`${release}-uml`, options.log ?? (() => {}))
  const process = new NativeProcess({
    name: 'user mode linux',
    // Not with a loader of its own: it executes itself again by /proc/self/exe.
    argv: [
      ...(options.cpu === undefined ? [] : ['taskset', '--cpu-list', String(options.cpu)]),
      join(root, 'usr/bin/linux.uml'),
      ...parameters(options, folder.path),
    ],
    netns: options.netns,
    // Guest processes are processes of this machine, which a killed kernel would leave behind.
    family: true,
    socket: true,
    fileFd: image,
    onOutput: (bytes) => console.write(bytes),
  })
  closeSync(image)
  const agent = new Agent(process.socket)
  let stopped = false
  const stop = async (keepLog: boolean): Promise<void> => {
    if (stopped) return
    stopped = true
    await process.stop()
    console.close(keepLog)
    folder[Symbol.dispose]()
  }
  const ended = process.exited.then((code) => {
    const error = new LabError(`user mode linux ${describeEnding(code)}; last it said:\n${console.tail()}`)
    agent.fail(error)
    return error
  })
  try {
    const late = (): string =>
      `user mode linux did not come up in ${BOOT_TIMEOUT_MS} ms; last it said:\n${console.tail()}`
    const ready = Promise.race([agent.ready, ended.then((error) => Promise.reject(error))])
    await patiently('lab: booting User Mode Linux', within(BOOT_TIMEOUT_MS, ready, late))
  } catch (error) {
    await stop(true)
    throw error
  }
  const guest = new Lab({ agent, console, stop }, release, 'native')
  return { guest, process, stop: () => stop(false), [Symbol.asyncDispose]: () => stop(false) }
}
