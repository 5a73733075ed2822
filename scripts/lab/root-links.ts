import { lstatSync, readdirSync, readlinkSync, rmSync, symlinkSync } from 'node:fs'
import { join, posix } from 'node:path'

/** As many links as the kernel follows in one path: path_resolution(7). */
const MAX_LINKS = 40

/** What a link's target means to a program whose root folder this is. */
interface Resolved {
  /** Names below the root. Links are followed in all of them but the last. */
  parts: string[]
  /**
   * True if a program with another root would arrive at the same place: the target is relative and never leaves the
   * root.
   */
  contained: boolean
}

const isLink = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() ?? false

/**
 * Resolves `target`, as found in a link of the folder `folder` below `root`, as chroot(2) would. Null if it goes round
 * in a circle.
 */
const resolveInside = (root: string, folder: readonly string[], target: string): Resolved | null => {
  let parts = [...folder]
  let contained = true
  let links = 0
  const enter = (text: string): void => {
    if (!text.startsWith('/')) return
    parts = []
    contained = false
  }
  enter(target)
  const names = target.split('/')
  while (names.length > 0) {
    const name = names.shift()!
    if (name === '' || name === '.') continue
    if (name === '..') {
      if (parts.pop() === undefined) contained = false
      continue
    }
    const path = join(root, ...parts, name)
    if (names.length === 0 || !isLink(path)) {
      parts.push(name)
      continue
    }
    if (++links > MAX_LINKS) return null
    const next = readlinkSync(path)
    enter(next)
    names.unshift(...next.split('/'))
  }
  return { parts, contained }
}

const relativeTarget = (folder: readonly string[], parts: readonly string[]): string =>
  posix.relative(`/${folder.join('/')}`, `/${parts.join('/')}`) || '.'

/**
 * Makes the symbolic links below the folder `root` mean the same to programs of this machine as to one whose root the
 * folder is: a link that is absolute, or leaves the folder by `..`, becomes a relative one to the same place inside. A
 * link that goes round in a circle leads nowhere and is removed. Returns how many links were changed; a second call
 * changes none.
 */
export const containLinks = (root: string): number => {
  let changed = 0
  const walk = (folder: readonly string[]): void => {
    for (const entry of readdirSync(join(root, ...folder), { withFileTypes: true })) {
      const path = join(root, ...folder, entry.name)
      if (entry.isDirectory()) walk([...folder, entry.name])
      if (!entry.isSymbolicLink()) continue
      const resolved = resolveInside(root, folder, readlinkSync(path))
      if (resolved?.contained) continue
      rmSync(path)
      if (resolved !== null) symlinkSync(relativeTarget(folder, resolved.parts), path)
      changed++
    }
  }
  walk([])
  return changed
}
