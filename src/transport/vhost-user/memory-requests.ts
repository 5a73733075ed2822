import type { DirtyLogging } from './dirty-logging.ts'
import { MEMORY_SLOTS } from './memory-table.ts'
import { type Handlers, type Outcome, type RequestFields, u64Reply } from './requests.ts'
import type { SessionState } from './session-state.ts'
import { overlap } from './session-vring.ts'

type Names = 'SET_MEM_TABLE' | 'GET_MAX_MEM_SLOTS' | 'ADD_MEM_REG' | 'REM_MEM_REG'

/** Requests about the guest's memory. docs/interop/vhost-user.rst, "Memory region description". */
export class MemoryRequests {
  readonly handlers: Handlers<Names> = {
    SET_MEM_TABLE: ({ regions }) => this.#replace(regions),
    GET_MAX_MEM_SLOTS: () => u64Reply(BigInt(MEMORY_SLOTS)),
    ADD_MEM_REG: ({ region }) => this.#add(region),
    REM_MEM_REG: ({ region }) => this.#remove(region),
  }
  readonly #state: SessionState
  readonly #logging: DirtyLogging

  constructor(state: SessionState, logging: DirtyLogging) {
    this.#state = state
    this.#logging = logging
  }

  /** Unmaps all memory of the front-end. */
  [Symbol.dispose](): void {
    const { memory, host } = this.#state.options
    memory.clear(() => host.forgetMemory())
  }

  #replace(regions: RequestFields['SET_MEM_TABLE']['regions']): Outcome {
    const { memory, host } = this.#state.options
    return this.#logging.refuseMemory(regions) ?? memory.replace(regions, () => host.forgetMemory())
  }

  #add(region: RequestFields['ADD_MEM_REG']['region']): Outcome {
    const { memory, host } = this.#state.options
    return this.#logging.refuseMemory([region]) ?? memory.add(region, () => host.forgetMemory())
  }

  #remove(region: RequestFields['REM_MEM_REG']['region']): Outcome {
    const { device, memory, host } = this.#state.options
    const range = { start: region.guestAddress, lengthBytes: region.lengthBytes }
    const user = this.#state.vrings.findIndex(
      ({ areas }, index) => device.isRunning(index) && areas.some((area) => overlap(area, range)),
    )
    if (user >= 0) return `ring ${user} runs in it`
    return memory.remove(region, () => host.forgetMemory())
  }
}
