import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** What a process has open and mapped that a frontend could have given it. */
export interface Holdings {
  /** What its descriptors refer to, without the numbers that tell one socket from another: a kind -> how many. */
  descriptors: Record<string, number>
  /** Shared mappings of files without a name, which is what guest memory is: path -> bytes. */
  sharedMaps: Record<string, number>
}

const count = (counts: Record<string, number>, key: string, amount = 1): void => {
  counts[key] = (counts[key] ?? 0) + amount
}

/** What the device makes for itself, once and when it first needs it: nobody gave it that. */
const OWN = /^\/(memfd:vduse-net-|\[aio\])/

/** Looks at /proc/PID/fd and /proc/PID/maps. Equal before and after a frontend means that nothing of it was kept. */
export const deviceHoldings = (pid: number): Holdings => {
  const descriptors: Record<string, number> = {}
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const target = readlinkSync(`/proc/${pid}/fd/${fd}`).replace(/:\[\d+\]$/, '')
      if (!OWN.test(target)) count(descriptors, target)
    } catch {
      // Closed since the folder was read.
    }
  }
  const sharedMaps: Record<string, number> = {}
  for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const match = /^([0-9a-f]+)-([0-9a-f]+) ...s \S+ \S+ \d+\s+(.*)$/.exec(line)
    if (match === null) continue
    const [, start = '', end = '', path = ''] = match
    if (OWN.test(path)) continue
    count(sharedMaps, path, Number.parseInt(end, 16) - Number.parseInt(start, 16))
  }
  return { descriptors, sharedMaps }
}
