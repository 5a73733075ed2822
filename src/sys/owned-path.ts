import { closeSync, constants, lstatSync, openSync, readdirSync, renameSync, type Stats, unlinkSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { UserError } from '../base/errors.ts'
import { native } from './native.ts'

/** How long to wait while another process has the name: after SIGTERM it needs a moment to end. */
const PATIENCE_MS = 2_000
const RETRY_MS = 20
/**
 * How long to wait for a folder's lock, which is held for much less: a process that holds it longer is stopped, and is
 * ignored.
 */
const LOCK_WAIT_MS = 1_000
const LOCK_RETRY_MS = 2

const sleeper = new Int32Array(new SharedArrayBuffer(4))

/** lstat of a path; null if there is nothing. */
const statOrNull = (path: string): Stats | null => lstatSync(path, { throwIfNoEntry: false }) ?? null

/**
 * Locks a folder against other processes of this program until disposed of, so that a name does not change between
 * check and use. Does nothing where a folder cannot be locked.
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

/** Names to remove at the end of the process (SIGKILL leaves them). */
const owned = new Set<OwnedPath>()
let isHooked = false
const disposeAll = (): void => {
  for (const name of [...owned]) name[Symbol.dispose]()
}

/**
 * A name in the file system that this process has made. Disposal removes it, unless another file has the name by then.
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

  /** True if the name is that of the file that was made. Throws if the folder is not accessible. */
  isThere(): boolean {
    const now = statOrNull(this.path)
    return now !== null && now.ino === this.#made.ino && now.dev === this.#made.dev
  }

  [Symbol.dispose](): void {
    if (!owned.delete(this)) return
    using _lock = lockFolder(dirname(this.path))
    try {
      if (this.isThere()) unlinkIfThere(this.path)
    } catch {
      // The folder is gone or not accessible any more: nothing can be removed.
    }
  }
}

/** Delay between two looks at the names. */
const WATCH_MS = 5_000

/**
 * Calls `onLost` once for each name of this process that somebody has deleted or replaced: a socket serves on, but
 * nobody can connect to it. Until disposed of.
 */
export const watchOwnedPaths = (onLost: (path: string) => void, intervalMs = WATCH_MS): Disposable => {
  const lost = new WeakSet<OwnedPath>()
  const look = (): void => {
    for (const name of owned) {
      try {
        if (lost.has(name) || name.isThere()) continue
      } catch {
        // The folder is not accessible: nothing can be said.
        continue
      }
      lost.add(name)
      onLost(name.path)
    }
  }
  const timer = setInterval(look, intervalMs)
  timer.unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

/** How to make a file at a path. */
export type Placing = {
  /** Makes the folder, if needed. */
  readonly prepare?: () => void
  /**
   * Checks an existing file. Null: it may be replaced. An error: a process that may be about to end uses it. Throws
   * UserError if it must stay.
   */
  readonly inspect: (there: Stats) => UserError | null
  /** Makes the new file under another name in the same folder. */
  readonly make: (temporary: string) => void | Promise<void>
}

/**
 * Removes temporary names of processes that were killed while placing a file. The folder is locked, so no living
 * process uses one.
 */
const removeLeftovers = (path: string): void => {
  const prefix = `${basename(path)}.~`
  try {
    for (const name of readdirSync(dirname(path)))
      if (name.startsWith(prefix) && /^\d+$/.test(name.slice(prefix.length))) unlinkIfThere(join(dirname(path), name))
  } catch {
    // The folder cannot be read, or a leftover belongs to another user: the temporary name of this process is unique
    // anyway.
  }
}

/** One attempt. Returns the error of {@link Placing.inspect} if a process has the name. */
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
    // `prepare` has made the folder: the process that owns it has just removed it.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && prepare !== undefined)
      return new UserError(`${path}: its folder was removed just now`, 'start again')
    throw error
  }
}

/**
 * Repeats an attempt that returns an error for up to PATIENCE_MS, since the process that has the name may be about to
 * end. Then throws the last error.
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
 * Makes a file at a path atomically, and replaces what a dead process has left. If another process has the name, waits
 * up to PATIENCE_MS for it.
 */
export const placePath = (path: string, placing: Placing): Promise<OwnedPath> =>
  patiently(() => tryPlace(path, placing))
