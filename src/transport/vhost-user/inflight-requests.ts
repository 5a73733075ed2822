import { VHOST_USER_INFLIGHT } from '../../abi/vhost-user.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import type { BorrowedArea } from '../../sys/mapping.ts'
import { InflightArea, type InflightDescription, type RingLayout } from './inflight-area.ts'
import type { Handlers, Outcome, RequestFields } from './requests.ts'
import type { SessionState } from './session-state.ts'

/** Requests about the inflight buffer. docs/interop/vhost-user.rst, "Inflight I/O tracking". */
export class InflightRequests {
  readonly handlers: Handlers<'GET_INFLIGHT_FD' | 'SET_INFLIGHT_FD'> = {
    GET_INFLIGHT_FD: (fields) => this.#get(fields),
    SET_INFLIGHT_FD: (fields) => this.#set(fields),
  }
  readonly #state: SessionState
  /** Made for GET_INFLIGHT_FD, until the front-end sends it with SET_INFLIGHT_FD. */
  #made: InflightArea | null = null
  /** The area of SET_INFLIGHT_FD, in which chains in flight are recorded. */
  #area: InflightArea | null = null

  constructor(state: SessionState) {
    this.#state = state
  }

  /** Where a vring records its chains from its next start on; null if the front-end has sent no area for it. */
  regionOf(index: number): BorrowedArea | null {
    return this.#area?.regionOf(index, this.#layout) ?? null
  }

  /** Precondition: no vring runs. */
  [Symbol.dispose](): void {
    this.#detach()
    this.#made?.[Symbol.dispose]()
    this.#area?.[Symbol.dispose]()
  }

  #get({ description, answerBytes }: RequestFields['GET_INFLIGHT_FD']): Outcome {
    const { queues, queueSize } = description
    const refusal = this.#refuse(description)
    if (refusal !== null) return refusal
    const area = InflightArea.make(queues, queueSize, this.#layout)
    if (typeof area === 'string') return area
    this.#made?.[Symbol.dispose]()
    this.#made = area
    const reply = new Uint8Array(answerBytes)
    const view = new DataView(reply.buffer)
    view.setBigUint64(VHOST_USER_INFLIGHT.mmap_size, BigInt(area.description.lengthBytes), true)
    view.setUint16(VHOST_USER_INFLIGHT.num_queues, queues, true)
    view.setUint16(VHOST_USER_INFLIGHT.queue_size, queueSize, true)
    return { reply, fds: [area.fd] }
  }

  #set({ description, fd }: RequestFields['SET_INFLIGHT_FD']): Outcome {
    if (this.#state.anyRunning) return 'a ring runs'
    const refusal = this.#refuse(description)
    if (refusal !== null) return refusal
    const area = InflightArea.open(fd.fd, description, this.#layout)
    if (typeof area === 'string') return area
    this.#detach()
    this.#area?.[Symbol.dispose]()
    this.#area = area
    this.#made?.[Symbol.dispose]()
    this.#made = null
    return null
  }

  #detach(): void {
    const { vrings, options } = this.#state
    for (const index of vrings.keys()) options.host.setInflight(index, null)
  }

  get #layout(): RingLayout {
    return this.#state.options.device.packed ? 'packed' : 'split'
  }

  #refuse({ queues, queueSize }: InflightDescription): Refusal {
    const { device } = this.#state.options
    const fits = queues > 0 && queues <= device.queueCount && queueSize > 0 && queueSize <= device.queueSizeMax
    return fits ? null : `${queues} rings of ${queueSize}`
  }
}
