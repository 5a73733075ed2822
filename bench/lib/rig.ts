import { availableParallelism } from 'node:os'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { FrontendRig } from '../../test/support/frontend-rig.ts'

/** Which processor does what. With two, the generator has to share one with the frontend that polls. */
export interface Placement {
  device: number
  frontend: number
  generator: number
}

/** What all rows of a run share. */
export class Rig extends FrontendRig {
  readonly placement: Placement

  private constructor(programs: { tapLoad: string; userland: string }) {
    super(programs)
    const cpus = availableParallelism()
    if (cpus < 2) throw new Error('the benchmark needs two processors: one for the device, one for the driver')
    this.placement = { device: 0, frontend: 1, generator: cpus > 2 ? 2 : 1 }
  }

  static override async open(): Promise<Rig> {
    return new Rig(await FrontendRig.programs())
  }

  /** Starts bench/native/tap-load.zig on a processor and waits until it has begun. */
  async tapLoadOn(cpu: number, ...words: readonly (string | number)[]): Promise<NativeProcess> {
    const argv = ['taskset', '--cpu-list', String(cpu), ...this.tapLoadWords(...words)]
    const child = this.start(`tap-load ${words[0]}`, argv)
    try {
      await child.line(/^ready$/)
      return child
    } catch (error) {
      await child.stop()
      throw error
    }
  }
}
