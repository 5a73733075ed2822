import { chmodSync, chownSync, type Stats } from 'node:fs'
import { constants } from 'node:os'
import { EXIT, errnoName, SysError, UserError } from '../base/errors.ts'
import { OwnedFd } from '../sys/fd.ts'
import { check } from '../sys/native.ts'
import { type OwnedPath, patiently, placePath } from '../sys/owned-path.ts'
import { isAbstract, isSocketServed, listenUnix } from '../sys/unix-socket.ts'

const { EACCES, EADDRINUSE, ENOENT, ENOTDIR, EPERM, EROFS } = constants.errno

const inUse = (path: string): UserError =>
  new UserError(`--socket-path ${path}: another process listens there`, 'stop that process, or choose another path')

const inspect = (path: string, there: Stats): UserError | null => {
  if (!there.isSocket()) {
    const kind = there.isDirectory() ? 'a folder' : there.isSymbolicLink() ? 'a symbolic link' : 'a file'
    throw new UserError(
      `--socket-path ${path}: ${kind} and no socket is there`,
      'choose another path; what is there is left alone',
    )
  }
  // A socket that no process serves was left by one that died.
  return isSocketServed(path) ? inUse(path) : null
}

const failure = (path: string, { errno, call }: { readonly errno: number; readonly call: string }): UserError => {
  const isDenied = [EACCES, EPERM, EROFS].includes(errno)
  const hint = [ENOENT, ENOTDIR].includes(errno)
    ? 'make the folder first'
    : isDenied
      ? 'choose a path in a folder that you may write to'
      : 'choose another path'
  return new UserError(
    `--socket-path ${path}: ${call}: ${errnoName(errno)}`,
    hint,
    isDenied ? EXIT.permission : EXIT.runtime,
  )
}

/** A socket that front-ends connect to. */
export type Listening = { readonly fd: OwnedFd /** Null for an abstract socket. */; readonly name: OwnedPath | null }

/** Access to the socket; null for the default of umask and process group. */
export type SocketAccess = { readonly mode: number | null; readonly gid: number | null }

const giveAccess = (path: string, { mode, gid }: SocketAccess): void => {
  try {
    // No access in between: the new group must never have the rights of the old one.
    if (gid !== null && mode !== null) chmodSync(path, 0)
    if (gid !== null) chownSync(path, process.geteuid!(), gid)
    if (mode !== null) chmodSync(path, mode)
  } catch (error) {
    const { code, syscall } = error as NodeJS.ErrnoException
    throw new UserError(
      `--socket-${syscall === 'chmod' ? 'mode' : `group ${gid}`}: ${syscall}: ${code}`,
      'run as root, or choose a group that this user is a member of',
      EXIT.permission,
    )
  }
}

/**
 * Listens at `path`, or at the name of an abstract socket, and replaces the socket of a process that died.
 * @throws {UserError} if another process listens there, if something else is there, or if it cannot be made.
 */
export const listenForFrontends = async (
  path: string,
  access: SocketAccess = { mode: null, gid: null },
): Promise<Listening> => {
  const made: { fd?: OwnedFd } = {}
  const listen = (at: string): OwnedFd => new OwnedFd(check('bind', listenUnix(at)))
  const listenAbstract = async (): Promise<OwnedFd | UserError> => {
    const bound = listenUnix(path)
    return bound === -EADDRINUSE ? inUse(path) : new OwnedFd(check('bind', bound))
  }
  try {
    if (isAbstract(path)) return { fd: await patiently(listenAbstract), name: null }
    const name = await placePath(path, {
      inspect: (there) => inspect(path, there),
      make: (temporary) => {
        made.fd = listen(temporary)
        giveAccess(temporary, access)
      },
    })
    return { fd: made.fd!, name }
  } catch (error) {
    made.fd?.[Symbol.dispose]()
    if (error instanceof SysError) throw failure(path, error)
    const { errno, syscall } = error as NodeJS.ErrnoException
    if (errno === undefined) throw error
    throw failure(path, { errno: Math.abs(errno), call: syscall ?? 'open' })
  }
}
