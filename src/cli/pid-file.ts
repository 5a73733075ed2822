import { closeSync, constants, openSync, readFileSync, type Stats, writeSync } from 'node:fs'
import { EXIT, UserError } from '../base/errors.ts'
import { check, native } from '../sys/native.ts'
import { type OwnedPath, placePath } from '../sys/owned-path.ts'

/** Digits of a process id and a line feed. */
const CONTENT_MAX_BYTES = 32

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error)

/** Null if the file is a pid file whose process does not run any more: a running process keeps its pid file locked. */
const inspect = (path: string, there: Stats): UserError | null => {
  const other = 'give a path of its own, like --pid /run/vduse-net/tap0.pid'
  if (!there.isFile()) throw new UserError(`--pid ${path}: exists and is no regular file`, other, EXIT.usage)
  if (there.size > CONTENT_MAX_BYTES)
    throw new UserError(`--pid ${path}: exists and holds something else than a process id`, other, EXIT.usage)
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const content = readFileSync(fd, 'utf8').trim()
    if (!/^\d*$/.test(content))
      throw new UserError(`--pid ${path}: exists and holds something else than a process id`, other, EXIT.usage)
    if (native.vn_lock(fd) >= 0) return null
    return new UserError(`--pid ${path}: process ${content} runs and has written it`, `stop that process, or ${other}`)
  } finally {
    closeSync(fd)
  }
}

/**
 * Writes this process's id to a file; disposing removes the file. Refuses the pid file of a running process; replaces
 * one of a process that has ended.
 * @throws {UserError} if the file cannot be created.
 */
export const writePidFile = async (path: string): Promise<Disposable> => {
  let fd = -1
  let placed: OwnedPath
  try {
    placed = await placePath(path, {
      inspect: (there) => inspect(path, there),
      make: (temporary) => {
        // Stays open, and so locked, until the file is removed: the lock says that this process runs.
        fd = openSync(
          temporary,
          constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
          0o644,
        )
        check('flock', native.vn_lock(fd))
        writeSync(fd, `${process.pid}\n`)
      },
    })
  } catch (error) {
    if (fd >= 0) closeSync(fd)
    if (error instanceof UserError) throw error
    const code = codeOf(error)
    throw new UserError(
      `--pid ${path}: ${code}`,
      code === 'ENOENT' ? 'make the folder first' : 'give a path in a folder that you may write to',
      ['EACCES', 'EPERM', 'EROFS'].includes(code) ? EXIT.permission : EXIT.runtime,
    )
  }
  return {
    [Symbol.dispose]() {
      placed[Symbol.dispose]()
      closeSync(fd)
    },
  }
}
