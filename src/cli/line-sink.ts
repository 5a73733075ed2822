import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs'
import { constants as os } from 'node:os'
import { SysError } from '../base/errors.ts'
import { native } from '../sys/native.ts'
import { workerUrl } from '../sys/worker.ts'
import { LineRing } from './line-ring.ts'

const { EAGAIN, ENOBUFS } = os.errno
const NO_FDS = new Int32Array(0)

/** A destination of log lines. No method blocks. */
export interface LineSink extends Disposable {
  /** Writes, and returns how many bytes were accepted; 0 when there is no room now. Throws if the reader is gone. */
  write(bytes: Uint8Array): number
  /** True if all accepted bytes have reached the file. */
  isIdle(): boolean
  /** True if the newest write of accepted bytes has failed. */
  isFailing(): boolean
  /** Number of accepted lines that could not be written (full disk). Only grows. */
  lostLines(): number
}

const sinkOf = (write: LineSink['write'], dispose: () => void): LineSink => ({
  write,
  isIdle: () => true,
  isFailing: () => false,
  lostLines: () => 0,
  [Symbol.dispose]: dispose,
})

/** MSG_DONTWAIT affects one call; O_NONBLOCK would affect every process that shares the socket. */
const socketSink = (fd: number): LineSink =>
  sinkOf(
    (bytes) => {
      const sent = native.vn_send_fds(fd, bytes, bytes.length, NO_FDS, 0)
      if (sent >= 0) return sent
      if (sent === -EAGAIN || sent === -ENOBUFS) return 0
      throw new SysError('sendmsg', -sent)
    },
    () => undefined,
  )

/**
 * A pipe or terminal, opened again with O_NONBLOCK: on the inherited descriptor the flag would affect other processes.
 */
const reopenedSink = (fd: number): LineSink | null => {
  let own: number
  try {
    own = openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch {
    // The pipe belongs to another user, or there is no /proc.
    return null
  }
  return sinkOf(
    (bytes) => {
      try {
        return writeSync(own, bytes)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return 0
        throw error
      }
    },
    () => closeSync(own),
  )
}

/** A sink without a thread; null for a regular file, which cannot be written without blocking. */
export const nonblockingSink = (fd: number): LineSink | null => {
  try {
    const status = fstatSync(fd)
    if (status.isSocket()) return socketSink(fd)
    return status.isFIFO() || status.isCharacterDevice() ? reopenedSink(fd) : null
  } catch {
    return null
  }
}

/**
 * A sink with a thread of its own, which may block on a disk that hangs. `process.exit` does not wait for the thread.
 */
const threadSink = (fd: number): LineSink => {
  const ring = new LineRing()
  const worker = new Worker(workerUrl('cli/line-worker.ts'))
  worker.unref()
  worker.postMessage({ fd, ring: ring.buffer })
  return {
    write: (bytes) => ring.put(bytes),
    isIdle: () => ring.isEmpty(),
    isFailing: () => ring.isFailing,
    lostLines: () => ring.lostLines,
    [Symbol.dispose]: () => worker.terminate(),
  }
}

/** A sink for the descriptor that never blocks its caller. */
export const lineSink = (fd: number): LineSink => nonblockingSink(fd) ?? threadSink(fd)
