import { chmodSync, lstatSync, mkdirSync, renameSync, rmdirSync, type Stats, statSync, unlinkSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { EXIT, UserError } from '../base/errors.ts'

/** How long a probed socket may take to accept. */
const PROBE_MS = 1000

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error)

const ignoring = (codes: readonly string[], act: () => void): void => {
  try {
    act()
  } catch (error) {
    if (!codes.includes(codeOf(error))) throw error
  }
}

/** Does anybody listen there? Only a refused connection says no: whoever is too busy to accept is there. */
const isServed = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(path)
    const answer = (served: boolean): void => {
      clearTimeout(timer)
      socket.destroy()
      resolve(served)
    }
    const timer = setTimeout(() => answer(true), PROBE_MS)
    socket.on('connect', () => answer(true))
    socket.on('error', (error) => answer(!['ECONNREFUSED', 'ENOENT'].includes(codeOf(error))))
  })

/** Makes the socket's folder if there is none; true if it was made. */
const makeFolder = (folder: string): boolean => {
  try {
    const made = mkdirSync(folder, { recursive: true, mode: 0o700 }) !== undefined
    const { mode, uid } = statSync(folder)
    if ((mode & 0o022) !== 0 && (mode & 0o1000) === 0)
      throw new UserError(
        `--admin: others can replace files in ${folder} (mode ${(mode & 0o777).toString(8)})`,
        `chmod 700 ${folder}, or choose another folder: --admin unix:/PATH`,
        EXIT.usage,
      )
    if (uid !== 0 && uid !== process.geteuid?.())
      throw new UserError(
        `--admin: ${folder} belongs to user ${uid}`,
        'choose a folder of your own: --admin unix:/PATH',
        EXIT.permission,
      )
    return made
  } catch (error) {
    if (error instanceof UserError) throw error
    const code = codeOf(error)
    throw new UserError(
      `--admin: ${folder}: ${code}`,
      'choose a folder that you can write to, --admin unix:/PATH, or --admin off',
      ['EACCES', 'EPERM', 'EROFS'].includes(code) ? EXIT.permission : EXIT.runtime,
    )
  }
}

const statOrNull = (path: string): Stats | null => {
  try {
    return lstatSync(path)
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return null
    throw error
  }
}

/** A socket at its final path. Disposing removes it, unless another process has put its own there. */
export interface PlacedSocket {
  readonly path: string
  [Symbol.dispose](): void
}

/**
 * Lets `listen` bind a socket so that nobody can connect before its mode is 0600, and that a crashed run's leftover is replaced at once:
 * bound under a temporary name, chmod, renamed.
 * @throws {UserError} if another process listens there, if something else than a socket is there, or if the folder will not do.
 */
export const placeSocket = async (path: string, listen: (path: string) => Promise<void>): Promise<PlacedSocket> => {
  const folder = dirname(path)
  const madeFolder = makeFolder(folder)
  const before = statOrNull(path)
  if (before !== null && !before.isSocket())
    throw new UserError(
      `--admin: ${path} exists and is no socket`,
      'remove it, or choose another path: --admin unix:/PATH',
    )
  if (before !== null && (await isServed(path)))
    throw new UserError(
      `--admin: ${path} is served by another process`,
      'stop that one, or choose another --name or --admin unix:/PATH',
    )

  // One name for all: a process that was killed right here leaves it, and the next one takes it away.
  const temporary = `${path}.new`
  try {
    ignoring(['ENOENT'], () => unlinkSync(temporary))
    await listen(temporary)
    chmodSync(temporary, 0o600)
    renameSync(temporary, path)
  } catch (error) {
    const code = codeOf(error)
    // Where it could not be made there is nothing to remove, and a read-only file system says so in its own way.
    ignoring(['ENOENT', code], () => unlinkSync(temporary))
    if (error instanceof UserError) throw error
    throw new UserError(
      `--admin: ${path}: ${code}`,
      'choose a path that you can write to, --admin unix:/PATH, or --admin off',
      ['EACCES', 'EPERM', 'EROFS'].includes(code) ? EXIT.permission : EXIT.runtime,
    )
  }
  const mine = lstatSync(path)
  return {
    path,
    [Symbol.dispose]() {
      const now = statOrNull(path)
      if (now !== null && now.ino === mine.ino && now.dev === mine.dev) ignoring(['ENOENT'], () => unlinkSync(path))
      // Another card may keep its socket in the same folder.
      if (madeFolder) ignoring(['ENOTEMPTY', 'EEXIST', 'ENOENT', 'EACCES', 'EPERM', 'EBUSY'], () => rmdirSync(folder))
    },
  }
}
