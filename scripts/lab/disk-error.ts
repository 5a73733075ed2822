import { tmpdir } from 'node:os'
import { cacheRoot } from './cache.ts'
import { LabError } from './command.ts'

const FULL = ['ENOSPC', 'EDQUOT']
const DENIED = ['EACCES', 'EPERM', 'EROFS']

/**
 * What a user can put right, of whatever a script has thrown: a `LabError` is one already, a disk that is full or may
 * not be written becomes one. Null for anything else, which is a fault of ours and wants its stack.
 */
export const asLabError = (error: unknown): LabError | null => {
  if (error instanceof LabError) return error
  const { code = '', path } = error as NodeJS.ErrnoException
  const where = `VDUSE_NET_CACHE=FOLDER takes the place of ${cacheRoot()}, and TMPDIR=FOLDER that of ${tmpdir()}`
  if (FULL.includes(code)) {
    const what = code === 'ENOSPC' ? 'no space left on the disk' : 'the quota of the disk is used up'
    return new LabError(`${what}${path === undefined ? '' : `: ${path}`}`, where)
  }
  if (DENIED.includes(code) && path !== undefined) return new LabError(`${path}: may not be written (${code})`, where)
  return null
}
