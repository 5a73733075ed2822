import { readdir, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type DebFile, debKey, PrivateApt } from './apt.ts'
import { cacheRoot, exists, folderOnce, readJson, TEMPORARY_PREFIX, writeWhole } from './cache.ts'
import { progress } from './command.ts'

/** How long a set of packages is used before the archive is asked for a newer one. */
const MAX_AGE_MS = 7 * 24 * 3600 * 1000

/** How long to leave the archive alone when it could not be reached. */
const RETRY_MS = 3600 * 1000

/** Raised when folders in the cache must be made anew although their packages are the same. */
const LAYOUT = 2

interface Pin {
  layout: number
  /** Name of the folder in use. */
  key: string
  /** When to ask the archive again. */
  nextCheckAt: number
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
 * The folder of a package set. The archive is asked at most once in `MAX_AGE_MS`; when it cannot be reached, what is in
 * the cache serves on.
 */
export const packageFolder = async (set: PackageSet): Promise<string> => {
  const home = join(cacheRoot(), set.name)
  const pinPath = join(home, 'pin.json')
  const found = await readJson<Pin>(pinPath)
  const pin = found?.layout === LAYOUT ? found : undefined
  const current = pin === undefined ? undefined : join(home, pin.key)
  const complete = current !== undefined && (await exists(current))
  if (pin !== undefined && complete && Date.now() < pin.nextCheckAt) return current

  const writePin = (next: Pin): Promise<void> => writeWhole(pinPath, JSON.stringify(next))

  let folder: string
  try {
    using apt = await PrivateApt.open(set.suite)
    const files = await set.select(apt)
    const key = `${LAYOUT}-${debKey(files)}`
    folder = join(home, key)
    await folderOnce(folder, (target) => set.build(apt, files, target))
    await writePin({ layout: LAYOUT, key, nextCheckAt: Date.now() + MAX_AGE_MS })
  } catch (error) {
    if (pin === undefined || !complete) throw error
    progress(`cannot refresh ${set.name} from ${set.suite}, using what was fetched before:\n${String(error)}`)
    await writePin({ ...pin, nextCheckAt: Date.now() + RETRY_MS })
    return current
  }
  await removeSiblings(folder)
  return folder
}

/** Removes what newer versions have replaced. Folders being filled by another run are left alone. */
const removeSiblings = async (folder: string): Promise<void> => {
  for (const entry of await readdir(dirname(folder), { withFileTypes: true })) {
    const path = join(dirname(folder), entry.name)
    if (entry.isDirectory() && path !== folder && !entry.name.startsWith(TEMPORARY_PREFIX)) {
      await rm(path, { recursive: true, force: true })
    }
  }
}
