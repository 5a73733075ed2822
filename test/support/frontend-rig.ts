/** What tests and benchmarks with real vhost-user frontends run on. */
import { deviceRefusal } from '../../scripts/frontends/device.ts'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { NativeRig, type RigPrograms } from '../../scripts/frontends/native-rig.ts'
import { fetchUserland } from '../../scripts/lab/userland.ts'
import { noRealTaps } from './network-namespace.ts'
import { buildTapLoad } from './programs.ts'

/** Why tests with real frontends cannot run here, or null if they can. */
export const noFrontends: string | null = noRealTaps ?? (await deviceRefusal())

if (noFrontends !== null) console.warn(`skipped, tests with real frontends: ${noFrontends}`)

/** A rig with a load generator. */
export class FrontendRig extends NativeRig {
  readonly #tapLoad: string

  protected constructor(programs: RigPrograms & { tapLoad: string }) {
    super(programs)
    this.#tapLoad = programs.tapLoad
  }

  protected static async programs(): Promise<RigPrograms & { tapLoad: string }> {
    const tapLoad = await buildTapLoad()
    return { tapLoad, userland: await fetchUserland() }
  }

  static override async open(): Promise<FrontendRig> {
    return new FrontendRig(await FrontendRig.programs())
  }

  /** Starts bench/native/tap-load.zig and waits until it has begun. */
  async tapLoad(...words: readonly (string | number)[]): Promise<NativeProcess> {
    const child = this.start(`tap-load ${words[0]}`, this.tapLoadWords(...words))
    try {
      await child.line(/^ready$/)
      return child
    } catch (error) {
      await child.stop()
      throw error
    }
  }

  /** The words of a command of bench/native/tap-load.zig. */
  tapLoadWords(...words: readonly (string | number)[]): string[] {
    return [this.#tapLoad, ...words.map(String)]
  }
}
