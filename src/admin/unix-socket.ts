import { chmodSync, mkdirSync, rmdirSync, type Stats, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { EXIT, UserError } from '../base/errors.ts'
import { OWN_FOLDER } from '../base/listen-address.ts'
import { placePath } from '../sys/owned-path.ts'
import { isSocketServed } from '../sys/unix-socket.ts'

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error)

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

/**
 * Removes a folder, unless something is in it: the socket of another card. A service manager may have made it, in a
 * file system that is read-only but for this folder.
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
 * Lets `listen` bind a socket so that nobody can connect before its mode is 0600, and that a crashed run's leftover is
 * replaced at once: bound under a temporary name, chmod, renamed. Disposing removes it, unless another process has put
 * its own there, and with it the folder, if that is empty and was made here or is `ownFolder`, which all cards share.
 * @throws {UserError} if another process listens there, if something else than a socket is there, or if the folder will
 * not do.
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
