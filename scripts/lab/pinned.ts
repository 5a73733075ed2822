import { readdir, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type DebFile, debKey, PrivateApt } from './apt.ts'
import { cacheRoot, exists, folderOnce, readJson, writeWhole } from './cache.ts'
import { progress } from './command.ts'

/** How long a set of packages is used before the archive is asked for a newer one. */
const MAX_AGE_MS = 7 * 24 * 3600 * 1000

interface Pin {
  key: string
  checkedAt: number
}

/** A set of Debian packages that is unpacked into the cache and follows its suite. */
export interface PackageSet {
  /** Name of the folder in the cache. */
  name: string
  suite: string
  select: (apt: PrivateApt) => Promise<DebFile[]>
  /** Turns the unpacked packages into what the lab keeps. */
  build: (apt: PrivateApt, files: DebFile[], target: string) => Promise<void>
}

/**
 * The folder of a package set. The archive is asked at most once in `MAX_AGE_MS`; when it cannot be reached, what is in the cache
 * serves on.
 */
export const packageFolder = async (set: PackageSet): Promise<string> => {
  const home = join(cacheRoot(), set.name)
  const pinPath = join(home, 'pin.json')
  const pin = await readJson<Pin>(pinPath)
  const current = pin === undefined ? undefined : join(home, pin.key)
  const complete = current !== undefined && (await exists(current))
  if (pin !== undefined && complete && Date.now() - pin.checkedAt < MAX_AGE_MS) return current

  let folder: string
  try {
    const apt = await PrivateApt.open(set.suite)
    try {
      const files = await set.select(apt)
      folder = join(home, debKey(files))
      await folderOnce(folder, (target) => set.build(apt, files, target))
      await writeWhole(pinPath, JSON.stringify({ key: debKey(files), checkedAt: Date.now() } satisfies Pin))
    } finally {
      await apt.close()
    }
  } catch (error) {
    if (!complete) throw error
    progress(`${set.suite} cannot be read, using what was fetched before (${String(error).split('\n')[0]})`)
    return current
  }
  await removeSiblings(folder)
  return folder
}

/** Removes what newer versions have replaced. Folders being filled by another run are left alone. */
const removeSiblings = async (folder: string): Promise<void> => {
  for (const entry of await readdir(dirname(folder), { withFileTypes: true })) {
    const path = join(dirname(folder), entry.name)
    if (entry.isDirectory() && path !== folder && !entry.name.startsWith('.tmp-')) {
      await rm(path, { recursive: true, force: true })
    }
  }
}
