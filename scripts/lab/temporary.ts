import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { onDeath } from './cleanup.ts'

/** Another machine may share the folder, and its processes are not in this /proc: young folders are kept. */
const ABANDONED_AFTER_MS = 3600 * 1000

/** A temporary folder. */
export interface TemporaryFolder extends Disposable {
  path: string
}

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** Removes what processes of this user that were killed have left behind. Their number is part of the name. */
const sweep = (parent: string, prefix: string): void => {
  for (const name of readdirSync(parent)) {
    const pid = name.startsWith(prefix) ? Number.parseInt(name.slice(prefix.length), 10) : Number.NaN
    if (Number.isNaN(pid) || isAlive(pid)) continue
    const path = join(parent, name)
    const folder = statSync(path, { throwIfNoEntry: false })
    if (folder === undefined || folder.uid !== process.getuid!()) continue
    if (Date.now() - folder.mtimeMs > ABANDONED_AFTER_MS) rmSync(path, { recursive: true, force: true })
  }
}

/** A fresh folder in `parent`. It goes when it is disposed of, or with this process. */
export const temporaryFolder = (parent: string, prefix: string): TemporaryFolder => {
  mkdirSync(parent, { recursive: true })
  sweep(parent, prefix)
  const path = mkdtempSync(join(parent, `${prefix}${process.pid}-`))
  const remove = (): void => rmSync(path, { recursive: true, force: true })
  const forget = onDeath(remove)
  return {
    path,
    [Symbol.dispose]: () => {
      remove()
      forget()
    },
  }
}
