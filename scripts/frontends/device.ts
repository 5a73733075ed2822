import { existsSync } from 'node:fs'
import { connect } from 'node:net'
import { resolve } from 'node:path'
import { LabError, run } from '../lab/command.ts'
import { NativeProcess, until } from './native-process.ts'

/** The compiled program: as the build leaves it, or another build that VN_EXECUTABLE names. */
const EXECUTABLE = process.env.VN_EXECUTABLE || resolve(import.meta.dir, '../../dist/vduse-net')

/** Why the program cannot serve vhost-user sockets, or null if it can. */
export const deviceRefusal = async (): Promise<string | null> => {
  if (!existsSync(EXECUTABLE)) return `${EXECUTABLE} is not built`
  const help = (await run([EXECUTABLE, '--help'])).toString()
  return help.includes('--socket-path') ? null : `${EXECUTABLE} has no --socket-path`
}

/** What to start. */
export interface DeviceOptions {
  netns: string
  ifname: string
  socket: string
  queuePairs?: number
  client?: boolean
  /** Processor to which all of it is bound. */
  cpu?: number
  args?: readonly string[]
  /** Where its admin API listens; off unless told. */
  admin?: string
  /** Gets each line of its log. */
  onLine?: (line: string) => void
}

/** The words that start the program. */
const deviceCommand = (options: DeviceOptions): string[] => [
  ...(options.cpu === undefined ? [] : ['taskset', '--cpu-list', String(options.cpu)]),
  ...[EXECUTABLE, '--tap', options.ifname, '-s', options.socket, '--admin', options.admin ?? 'off'],
  ...(options.queuePairs === undefined ? [] : ['--queue-pairs', String(options.queuePairs)]),
  ...(options.client === true ? ['--client'] : []),
  ...(options.args ?? []),
]

/** Starts `vduse-net --tap IFNAME -s SOCKET` and waits for nothing. */
export const launchDevice = (options: DeviceOptions): NativeProcess =>
  new NativeProcess({
    name: 'vduse-net',
    netns: options.netns,
    argv: deviceCommand(options),
    ...(options.onLine === undefined ? {} : { onLine: options.onLine }),
  })

/** Starts it and, where it is the server, waits until a frontend can connect. */
export const startDevice = async (options: DeviceOptions): Promise<NativeProcess> => {
  const { socket, client = false } = options
  const device = launchDevice(options)
  try {
    if (!client) {
      const listening = (): boolean => {
        if (!device.alive) throw new LabError(`vduse-net ${device.ending}; it said:\n${device.tail()}`)
        return existsSync(socket)
      }
      await until(`vduse-net listens on ${socket}`, listening)
    }
    return device
  } catch (error) {
    await device.stop()
    throw error
  }
}

/**
 * Message numbers and header of vhost-user, from docs/interop/vhost-user.rst: request, flags (version 1), size of the
 * payload.
 */
const GET_FEATURES = 1
const VERSION = 1

/**
 * Reads a vhost-user device's features as a frontend would, and disconnects: shows that it serves. Rejects when it
 * cannot be reached or does not answer.
 */
export const offeredFeatures = (socket: string, timeoutMs = 60_000): Promise<bigint> =>
  new Promise((resolve, reject) => {
    const request = Buffer.alloc(12)
    request.writeUInt32LE(GET_FEATURES, 0)
    request.writeUInt32LE(VERSION, 4)
    let answer = Buffer.alloc(0)
    const connection = connect(socket)
    const timer = setTimeout(() => finish(new LabError(`${socket}: no answer in ${timeoutMs} ms`)), timeoutMs)
    const finish = (result: bigint | Error): void => {
      clearTimeout(timer)
      connection.destroy()
      if (typeof result === 'bigint') resolve(result)
      else reject(result)
    }
    connection.on('connect', () => connection.write(request))
    connection.on('error', finish)
    connection.on('close', () => finish(new LabError(`${socket}: closed without an answer`)))
    connection.on('data', (bytes: Buffer) => {
      answer = Buffer.concat([answer, bytes])
      if (answer.length >= 20) finish(answer.readBigUInt64LE(12))
    })
  })
