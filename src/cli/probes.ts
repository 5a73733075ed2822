import { closeSync, constants, existsSync, openSync } from 'node:fs'
import { release } from 'node:os'
import type { Probes } from './doctor.ts'
import { readTextOrNull } from './host.ts'

/** Probes that need native code. */
export type NativeProbes = {
  /** 0 or a positive errno. */
  readonly trySteering: Probes['trySteering']
  readonly vduseControlQueue: Probes['vduseControlQueue']
}

/** Probes of this machine. */
export const machineProbes = ({ trySteering, vduseControlQueue }: NativeProbes): Probes => ({
  readText: readTextOrNull,
  exists: existsSync,
  tryOpen: (path) => {
    try {
      closeSync(openSync(path, constants.O_RDWR | constants.O_NONBLOCK))
      return 0
    } catch (error) {
      return Math.abs((error as NodeJS.ErrnoException).errno ?? 0)
    }
  },
  kernelRelease: release,
  trySteering,
  vduseControlQueue,
})
