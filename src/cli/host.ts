import { readFileSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import { UserError } from '../base/errors.ts'
import { native } from '../sys/native.ts'
import { programName } from './program-name.ts'

const STDOUT = 1

/** What the command line needs of the machine. Tests replace it. */
export interface Host {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Data for the user, on stdout. */
  out(text: string): void
  /** A warning on stderr, for commands without a log. */
  warn(text: string): void
  /** The text of a small file, or null if it cannot be read. */
  readText(path: string): string | null
  hostname(): string
  /** How the user can call this program again. */
  readonly programName: string
  /** Numbers of the processors that this process may run on; null if the kernel does not say. */
  allowedCpus(): readonly number[] | null
}

/** The text of a file, or null if it cannot be read. */
export const readTextOrNull = (path: string): string | null => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

/** While the reader of a non-blocking stdout is slow. */
const RETRY_MS = 5

/**
 * Writes to stdout. EPIPE is ignored: the reader (`| head`) has read what it needs.
 * @throws {UserError} if the text is not written, for instance to a full disk.
 */
const out = (text: string): void => {
  for (let bytes = Buffer.from(text); bytes.length > 0; ) {
    try {
      bytes = bytes.subarray(writeSync(STDOUT, bytes))
    } catch (error) {
      const { code = 'unwritable' } = error as NodeJS.ErrnoException
      if (code === 'EPIPE') return
      if (code !== 'EAGAIN') throw new UserError(`stdout: ${code}`, 'check the file or device that it is written to')
      Bun.sleepSync(RETRY_MS)
    }
  }
}

/** Bytes of a processor mask: 8,192 processors, the most that a kernel is configured for. */
const CPU_MASK_BYTES = 1024

const allowedCpus = (): readonly number[] | null => {
  const mask = new Uint8Array(CPU_MASK_BYTES)
  if (native.vn_allowed_cpus(mask, mask.length) < 0) return null
  return Array.from({ length: CPU_MASK_BYTES * 8 }, (_, cpu) => cpu).filter(
    (cpu) => ((mask[cpu >> 3]! >> (cpu & 7)) & 1) === 1,
  )
}

/** This machine and this process. */
export const thisHost: Host = {
  env: process.env,
  out,
  warn: (text) => void process.stderr.write(`vduse-net: ${text}\n`),
  readText: readTextOrNull,
  hostname,
  programName: programName(),
  allowedCpus,
}
