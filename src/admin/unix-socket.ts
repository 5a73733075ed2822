import { chmodSync, lstatSync, mkdirSync, rmdirSync, type Stats, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { EXIT, UserError } from '../base/errors.ts'
import { OWN_FOLDER } from '../base/listen-address.ts'
import { patiently, placePath } from '../sys/owned-path.ts'
import { isSocketServed } from '../sys/unix-socket.ts'

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error)

/** Creates the socket's folder if there is none. True if it was created. */
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

/**
 * Removes a folder if it is empty: another card may have its socket in it. Errors are ignored: a service manager may
 * have made the folder, in a file system that is otherwise read-only.
 */
const removeFolder = (folder: string): void => {
  try {
    rmdirSync(folder)
  } catch (error) {
    if (!['ENOTEMPTY', 'EEXIST', 'ENOENT', 'EACCES', 'EPERM', 'EBUSY', 'EROFS'].includes(codeOf(error))) throw error
  }
}

const inspect = (path: string, there: Stats): UserError | null => {
  if (!there.isSocket())
    throw new UserError(
      `--admin: ${path} exists and is no socket`,
      'remove it, or choose another path: --admin unix:/PATH',
    )
  if (!isSocketServed(path)) return null
  return new UserError(
    `--admin: ${path} is served by another process`,
    'stop that one, or choose another --name or --admin unix:/PATH',
  )
}

/**
 * Waits a moment for a process that serves a socket at `path` and may be about to end.
 * @throws {UserError} if it does not, or if the path is not a socket.
 */
export const awaitUnservedSocket = async (path: string): Promise<void> => {
  await patiently(async () => {
    const there = lstatSync(path, { throwIfNoEntry: false })
    return (there === undefined ? null : inspect(path, there)) ?? {}
  })
}

/**
 * Has `listen` bind a socket under a temporary name, sets its mode to 0600, and renames it to `path`: so nobody can
 * connect before the mode is set, and the socket of a crashed run is replaced atomically. Disposing removes the socket,
 * unless another process has replaced it. It also removes the folder if that is empty and was created here or is
 * `ownFolder`, which all cards share.
 * @throws {UserError} if another process listens there, if the path is not a socket, or if the folder cannot be used.
 */
export const placeSocket = async (
  path: string,
  listen: (path: string) => Promise<void>,
  ownFolder = OWN_FOLDER,
): Promise<Disposable> => {
  const folder = dirname(path)
  // The process that made it may have been killed, or have ended before this one.
  let removesFolder = folder === ownFolder
  try {
    const placed = await placePath(path, {
      prepare: () => {
        removesFolder = makeFolder(folder) || removesFolder
      },
      inspect: (there) => inspect(path, there),
      make: async (temporary) => {
        await listen(temporary)
        chmodSync(temporary, 0o600)
      },
    })
    return {
      [Symbol.dispose]() {
        placed[Symbol.dispose]()
        if (removesFolder) removeFolder(folder)
      },
    }
  } catch (error) {
    if (removesFolder) removeFolder(folder)
    if (error instanceof UserError) throw error
    const code = codeOf(error)
    throw new UserError(
      `--admin: ${path}: ${code}`,
      'choose a path that you can write to, --admin unix:/PATH, or --admin off',
      ['EACCES', 'EPERM', 'EROFS'].includes(code) ? EXIT.permission : EXIT.runtime,
    )
  }
}
