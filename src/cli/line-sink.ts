import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs'
import { constants as os } from 'node:os'
import { SysError } from '../base/errors.ts'
import { native } from '../sys/native.ts'
import { workerUrl } from '../sys/worker.ts'
import { LineRing } from './line-ring.ts'

const { EAGAIN, ENOBUFS } = os.errno
const NO_FDS = new Int32Array(0)

/** Where lines go. Nothing here ever waits. */
export interface LineSink extends Disposable {
  /** How many of the bytes were taken; 0 when there is no room now. Throws if the reader is gone. */
  write(bytes: Uint8Array): number
  /** Has all that was taken reached its file? */
  isIdle(): boolean
  /** Has the newest write of what was taken failed? */
  isFailing(): boolean
  /** Lines that were taken and could not be written after all: a full disk. Only grows. */
  lostLines(): number
}

const sinkOf = (write: LineSink['write'], dispose: () => void): LineSink => ({
  write,
  isIdle: () => true,
  isFailing: () => false,
  lostLines: () => 0,
  [Symbol.dispose]: dispose,
})

/** MSG_DONTWAIT holds for one call; O_NONBLOCK would hold for every process that shares the socket. */
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

/** A pipe or terminal, opened a second time with O_NONBLOCK: on the descriptor itself the flag would be everybody's. */
const reopenedSink = (fd: number): LineSink | null => {
  let own: number
  try {
    own = openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch {
    // Another user's pipe after a change of user, or no /proc.
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

/** The descriptor as a sink that needs no thread; null where the kernel has no way to write without waiting: a file. */
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
 * A thread that writes, and waits where the file lets it wait: on a disk that hangs. The process ends all the same:
 * `process.exit` does not wait for a thread.
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

/** The descriptor as something that lines can be written to without waiting. */
export const lineSink = (fd: number): LineSink => nonblockingSink(fd) ?? threadSink(fd)
