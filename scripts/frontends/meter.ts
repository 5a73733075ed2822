import { readFileSync } from 'node:fs'

/**
 * Ticks of the clock in which the kernel counts processor time: USER_HZ, 100 on every architecture that Linux has now.
 */
const TICK_NS = 1e7

/** Processor time of a process and its threads, user and system, ns. proc(5), /proc/PID/stat fields 14 and 15. */
export const processorNs = (pid: number): number => {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
  // The name of the program, field 2, may hold anything.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) * TICK_NS
}

/** Bytes of memory that a process has in use and that are its own: not those of the driver, which it maps. */
export const ownMemoryBytes = (pid: number): number => {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8')
  const kilobytes = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1])
  return (kilobytes('VmRSS') - kilobytes('RssShmem')) * 1024
}

/** What happened in a window of time. */
export interface Window {
  seconds: number
  /** How far the counter moved. */
  count: number
  /** Processor time spent, ns. */
  cpuNs: number
}

/** Watches a counter and a process's processor time for `seconds`. */
export const watch = async (pid: number, seconds: number, counter: () => number | Promise<number>): Promise<Window> => {
  const countBefore = await counter()
  const cpuBefore = processorNs(pid)
  const began = performance.now()
  await Bun.sleep(seconds * 1000)
  const cpuNs = processorNs(pid) - cpuBefore
  const elapsed = performance.now() - began
  const count = (await counter()) - countBefore
  return { seconds: elapsed / 1000, count, cpuNs }
}
