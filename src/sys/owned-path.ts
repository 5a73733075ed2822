import { closeSync, constants, lstatSync, openSync, readdirSync, renameSync, type Stats, unlinkSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { UserError } from '../base/errors.ts'
import { native } from './native.ts'

/** How long a name may stay in the hands of another process: one that has got SIGTERM needs a moment to end. */
const PATIENCE_MS = 2_000
const RETRY_MS = 20
/** What is done while a folder is locked takes far less; whoever keeps it for longer is stopped, and is passed over. */
const LOCK_WAIT_MS = 1_000
const LOCK_RETRY_MS = 2

const sleeper = new Int32Array(new SharedArrayBuffer(4))

/** What is at a path itself, a symbolic link included; null if there is nothing. */
const statOrNull = (path: string): Stats | null => lstatSync(path, { throwIfNoEntry: false }) ?? null

/**
 * Keeps other processes of this program from changing names in a folder, until it is disposed of: between a look at a
 * name and what is done because of it nothing may happen. Where a folder cannot be locked, it does nothing.
 */
const lockFolder = (folder: string): Disposable => {
  let fd: number
  try {
    fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  } catch {
    return { [Symbol.dispose]: () => undefined }
  }
  const deadline = performance.now() + LOCK_WAIT_MS
  while (native.vn_lock(fd) < 0 && performance.now() < deadline) Atomics.wait(sleeper, 0, 0, LOCK_RETRY_MS)
  return { [Symbol.dispose]: () => closeSync(fd) }
}

const unlinkIfThere = (path: string): void => {
  try {
    unlinkSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}

/** Names that are to go however the process ends, unless it is killed. */
const owned = new Set<OwnedPath>()
let isHooked = false
const disposeAll = (): void => {
  for (const name of [...owned]) name[Symbol.dispose]()
}

/**
 * A name in the file system that this process has made. Disposing removes it, unless something else has the name by
 * now.
 */
export class OwnedPath implements Disposable {
  readonly path: string
  readonly #made: Stats

  /**
   * `made`: the file that this process has put at `path`. It must exist until this is disposed of, so that nothing else
   * gets its number.
   */
  constructor(path: string, made: Stats) {
    this.path = path
    this.#made = made
    owned.add(this)
    if (!isHooked) process.on('exit', disposeAll)
    isHooked = true
  }

  [Symbol.dispose](): void {
    if (!owned.delete(this)) return
    using _lock = lockFolder(dirname(this.path))
    try {
      const now = statOrNull(this.path)
      if (now !== null && now.ino === this.#made.ino && now.dev === this.#made.dev) unlinkIfThere(this.path)
    } catch {
      // The folder is gone or closed to us by now: nothing of ours can be removed.
    }
  }
}

/** How something comes to be at a path. */
export type Placing = {
  /** Makes the folder, if that is wanted. */
  readonly prepare?: () => void
  /**
   * Looks at what is there: null if it may be replaced; an error if a process has it that may be about to end. Throws
   * UserError if it must stay.
   */
  readonly inspect: (there: Stats) => UserError | null
  /** Makes the new file under another name in the same folder. */
  readonly make: (temporary: string) => void | Promise<void>
}

/**
 * Temporary names that processes have left which were killed while they placed something. The folder is locked: nobody
 * is at it.
 */
const removeLeftovers = (path: string): void => {
  const prefix = `${basename(path)}.~`
  try {
    for (const name of readdirSync(dirname(path)))
      if (name.startsWith(prefix) && /^\d+$/.test(name.slice(prefix.length))) unlinkIfThere(join(dirname(path), name))
  } catch {
    // A folder that cannot be read, or a leftover of somebody else's: the name of this process is its own anyway.
  }
}

/** One attempt; the error of a process that has the name now. */
const tryPlace = async (path: string, { prepare, inspect, make }: Placing): Promise<OwnedPath | UserError> => {
  prepare?.()
  using _lock = lockFolder(dirname(path))
  const there = statOrNull(path)
  const busy = there === null ? null : inspect(there)
  if (busy !== null) return busy
  removeLeftovers(path)
  const temporary = `${path}.~${process.pid}`
  unlinkIfThere(temporary)
  try {
    await make(temporary)
    const made = lstatSync(temporary)
    renameSync(temporary, path)
    return new OwnedPath(path, made)
  } catch (error) {
    if (statOrNull(temporary) !== null) unlinkIfThere(temporary)
    // The folder was there a moment ago: the process that had made it has just removed it.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && prepare !== undefined)
      return new UserError(`${path}: its folder was removed just now`, 'start again')
    throw error
  }
}

/**
 * Tries until it has worked. A name that another process has is waited for, a moment: that process may be about to end.
 * Throws the error that the last attempt returned.
 */
export const patiently = async <T extends object>(attempt: () => Promise<T | UserError>): Promise<T> => {
  const deadline = performance.now() + PATIENCE_MS
  for (;;) {
    const outcome = await attempt()
    if (!(outcome instanceof UserError)) return outcome
    if (performance.now() >= deadline) throw outcome
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
  }
}

/**
 * Makes something at a path so that it is there whole or not at all, and replaces what a process that died has left. If
 * another process has the name, it may be about to end: that is waited for, a moment.
 */
export const placePath = (path: string, placing: Placing): Promise<OwnedPath> =>
  patiently(() => tryPlace(path, placing))
