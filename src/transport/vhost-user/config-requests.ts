import { VHOST_USER_CONFIG } from '../../abi/vhost-user.ts'
import type { Handlers, Outcome, RequestFields } from './requests.ts'
import type { SessionState } from './session-state.ts'

/** Requests about the configuration space. docs/interop/vhost-user.rst, "Virtio device config space". */
export class ConfigRequests {
  readonly handlers: Handlers<'GET_CONFIG' | 'SET_CONFIG'> = {
    GET_CONFIG: (fields) => this.#get(fields),
    SET_CONFIG: ({ offset, bytes }) => this.#state.options.device.setConfig(offset, bytes),
  }
  readonly #state: SessionState

  constructor(state: SessionState) {
    this.#state = state
  }

  #get({ offset, size, flags }: RequestFields['GET_CONFIG']): Outcome {
    const bytes = this.#state.options.device.getConfig(offset, size)
    // The specification's way to refuse: a payload of length 0.
    if (bytes === null) return { reply: new Uint8Array(0) }
    const reply = new Uint8Array(VHOST_USER_CONFIG.payload + size)
    const view = new DataView(reply.buffer)
    view.setUint32(VHOST_USER_CONFIG.offset, offset, true)
    view.setUint32(VHOST_USER_CONFIG.size, size, true)
    view.setUint32(VHOST_USER_CONFIG.flags, flags, true)
    reply.set(bytes, VHOST_USER_CONFIG.payload)
    return { reply }
  }
}
