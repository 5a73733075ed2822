import { constants } from 'node:os'
import { DRIVER_FAULT, type DriverFaultCode } from './driver-faults.ts'

/** Process exit codes. */
export const EXIT = { ok: 0, runtime: 1, usage: 2, deviceMissing: 66, permission: 77 } as const
export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/**
 * An error for the user: a message (what and why), a hint (what to do) and an exit code. Printed as `vduse-net:
 * MESSAGE` and `hint: HINT`.
 */
export class UserError extends Error {
  override name = 'UserError'
  readonly hint: string
  readonly exitCode: ExitCode
  constructor(message: string, hint: string, exitCode: ExitCode = EXIT.runtime) {
    super(message)
    this.hint = hint
    this.exitCode = exitCode
  }
}

/** The driver broke the specification in a way that leaves a ring unusable: its queue is quarantined until reset. */
export class DriverFault extends Error {
  override name = 'DriverFault'
  readonly code: DriverFaultCode
  /** `detail` is for people; code compares {@link code} or {@link number}. */
  constructor(code: DriverFaultCode, detail: string) {
    super(`${code}: ${detail}`)
    this.code = code
  }
  get number(): number {
    return DRIVER_FAULT[this.code]
  }
}

/** The peer broke the control protocol: the session is closed. */
export class ProtocolError extends Error {
  override name = 'ProtocolError'
}

const errnoNames = new Map<number, string>(Object.entries(constants.errno).map(([name, value]) => [value, name]))

/** `EBADF` for 9; `errno 200` where the number has no name. */
export const errnoName = (errno: number): string => errnoNames.get(errno) ?? `errno ${errno}`

/** A system call failed with an unexpected errno. `errno` is positive. */
export class SysError extends Error {
  override name = 'SysError'
  readonly call: string
  readonly errno: number
  constructor(call: string, errno: number) {
    super(`${call}: ${errnoName(errno)}`)
    this.call = call
    this.errno = errno
  }
}
