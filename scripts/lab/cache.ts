import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { temporaryFolder } from './temporary.ts'

/** How names of folders begin that are still being filled. */
export const TEMPORARY_PREFIX = '.tmp-'

/** Where everything downloaded or built is kept: outside the tree, shared by all checkouts of one user. */
export const cacheRoot = (): string =>
  process.env.VDUSE_NET_CACHE || join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'vduse-net')

/** Does `path` exist? */
export const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  )

/**
 * The folder `path`, filled by `fill` if it is not there yet. It appears complete or not at all: an interrupted run
 * leaves only a `.tmp-` sibling, and of two runs that race the second keeps what the first made.
 */
export const folderOnce = async (path: string, fill: (temporary: string) => Promise<void>): Promise<string> => {
  if (await exists(path)) return path
  using temporary = temporaryFolder(dirname(path), TEMPORARY_PREFIX)
  await fill(temporary.path)
  await rename(temporary.path, path).catch(async (error) => {
    if (!(await exists(path))) throw error
  })
  return path
}

/** Replaces the file `path` in one step. */
export const writeWhole = async (path: string, content: string | Uint8Array): Promise<void> => {
  await mkdir(dirname(path), { recursive: true })
  const temporary = `${path}.tmp-${process.pid}`
  await writeFile(temporary, content)
  await rename(temporary, path)
}

/** The JSON in `path`, or undefined when there is none or it cannot be read: a cache entry that may be made again. */
export const readJson = async <T>(path: string): Promise<T | undefined> => {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as T
  } catch {
    return undefined
  }
}
