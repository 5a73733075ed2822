import {
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_VRING_STATE,
} from '../../abi/vhost-user.ts'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../../abi/virtio.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import { EventFd } from '../../sys/eventfd.ts'
import { native } from '../../sys/native.ts'
import { isEventFd, ownTarget, PeerSignal } from '../../sys/peer-signal.ts'
import { POLLIN, type Poller } from '../../sys/poller.ts'
import { ringExtents } from '../../virtqueue/ring-extents.ts'
import { firstBase } from '../../virtqueue/virtqueue-config.ts'
import type { DirtyLogging } from './dirty-logging.ts'
import type { InflightRequests } from './inflight-requests.ts'
import type { Handlers, Outcome, RequestFields } from './requests.ts'
import type { SessionState } from './session-state.ts'
import type { SessionVring } from './session-vring.ts'

type Names =
  | 'SET_VRING_NUM'
  | 'SET_VRING_ADDR'
  | 'SET_VRING_BASE'
  | 'GET_VRING_BASE'
  | 'SET_VRING_KICK'
  | 'SET_VRING_CALL'
  | 'SET_VRING_ERR'
  | 'VRING_KICK'

const STARTED =
  VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK

/**
 * Requests about one vring. SET_VRING_KICK or VRING_KICK starts it, GET_VRING_BASE stops it.
 * docs/interop/vhost-user.rst, "Ring states".
 */
export class VringRequests {
  readonly handlers: Handlers<Names> = {
    SET_VRING_NUM: (fields) => this.#setNum(fields),
    SET_VRING_ADDR: (fields) => this.#setAddr(fields),
    SET_VRING_BASE: (fields) => this.#setBase(fields),
    GET_VRING_BASE: ({ index }) => this.#getBase(index),
    SET_VRING_KICK: (fields) => this.#setKick(fields),
    SET_VRING_CALL: (fields) => this.#setCall(fields),
    SET_VRING_ERR: (fields) => this.#setErr(fields),
    VRING_KICK: ({ index }) => this.#kick(index),
  }
  readonly #state: SessionState
  readonly #poller: Poller
  readonly #logging: DirtyLogging
  readonly #inflight: InflightRequests

  constructor(state: SessionState, poller: Poller, logging: DirtyLogging, inflight: InflightRequests) {
    this.#state = state
    this.#poller = poller
    this.#logging = logging
    this.#inflight = inflight
    for (const index of state.vrings.keys()) {
      state.options.host.setCall(index, -1)
      state.options.host.setEnabled(index, false)
    }
  }

  /** Enables or disables a vring. A disabled vring discards what the driver sends, and receives nothing. */
  enable(index: number, enabled: boolean): void {
    const { device, host } = this.#state.options
    const vring = this.#state.vrings[index]!
    vring.enabled = enabled
    host.setEnabled(index, enabled)
    if (vring.kicked) device.setVqReady(index, true)
  }

  /** Stops the vring and clears its configuration, so that it does not start half configured. */
  abandon(index: number): void {
    const vring = this.#state.vrings[index]
    if (vring === undefined) return
    this.#state.options.device.forgetVq(index)
    vring.kicked = false
    vring.areas = []
  }

  /** Sends VRING_CALL for the vrings whose workers have requested a call. */
  serveInBandCalls(): void {
    for (const [index, { inBandCall, inBandCallSlot }] of this.#state.vrings.entries()) {
      if (inBandCall === null || this.#poller.ready(inBandCallSlot) === 0) continue
      inBandCall.drain()
      this.#state.backend?.call(index)
    }
  }

  /** Precondition: the device has been reset, and all memory is released. */
  [Symbol.dispose](): void {
    for (const [index, vring] of this.#state.vrings.entries()) {
      this.#state.options.host.setCall(index, -1)
      if (vring.inBandCallSlot >= 0) this.#poller.remove(vring.inBandCallSlot)
      vring[Symbol.dispose]()
    }
  }

  #setNum({ index, size }: RequestFields['SET_VRING_NUM']): Outcome {
    const { device } = this.#state.options
    const vring = this.#state.vrings[index]
    // User Mode Linux does not report a reset of its driver: it disables the ring, then sets it up again.
    if (vring?.enabled === false && device.isRunning(index)) {
      vring.kicked = false
      const refusal = device.setVqReady(index, false)
      if (refusal !== null) return refusal
    }
    return device.setVqNum(index, size)
  }

  #setAddr({ index, log, ...user }: RequestFields['SET_VRING_ADDR']): Outcome {
    const { device, memory } = this.#state.options
    const size = device.vqSize(index)
    const vring = this.#state.vrings[index]
    if (size === null || vring === undefined) return `no ring ${index}`
    if (size === 0) return `ring ${index}: addresses before its size`
    const extents = ringExtents(size, device.packed)
    const desc = memory.toGuest(user.desc, extents.desc)
    const avail = memory.toGuest(user.avail, extents.avail)
    const used = memory.toGuest(user.used, extents.used)
    if (desc === null || avail === null || used === null) return `ring ${index}: not inside one memory region`
    if (!this.#logging.covers(log, extents.used)) return `ring ${index}: its used ring is outside of the log`
    // During migration a front-end repeats the addresses of running rings, with another log flag.
    const same = device.isRunning(index) && device.hasVqAddr(index, desc, avail, used)
    const refusal = same ? null : device.setVqAddr(index, desc, avail, used)
    if (refusal !== null) return refusal
    vring.areas = [
      { start: desc, lengthBytes: extents.desc },
      { start: avail, lengthBytes: extents.avail },
      { start: used, lengthBytes: extents.used },
    ]
    this.#logging.setUsedLog(index, log, extents.used)
    return null
  }

  #setBase({ index, base }: RequestFields['SET_VRING_BASE']): Outcome {
    const { device } = this.#state.options
    if (base !== firstBase(device.packed) && this.#state.vrings[index]?.started === false) this.#state.resumes = true
    return device.setVqState(index, base)
  }

  /** Stops the vring. Repeated, it answers the same base. */
  #getBase(index: number): Outcome {
    const { device } = this.#state.options
    const vring = this.#state.vrings[index]
    if (vring !== undefined) vring.kicked = false
    const stopped = device.setVqReady(index, false)
    const base = device.getVqState(index)
    if (stopped !== null || base === null) return stopped ?? `no ring ${index}`
    const reply = new Uint8Array(VHOST_VRING_STATE.sizeBytes)
    const view = new DataView(reply.buffer)
    view.setUint32(VHOST_VRING_STATE.index, index, true)
    view.setUint32(VHOST_VRING_STATE.num, base, true)
    return { reply }
  }

  #setKick({ index, fd }: RequestFields['SET_VRING_KICK']): Outcome {
    if (this.#state.vrings[index] === undefined) return `no ring ${index}`
    if (fd === null) return `ring ${index}: no kick descriptor, and polling without kicks is not supported`
    // Another file could stay readable, and poll would never sleep.
    if (!isEventFd(fd.fd)) return `ring ${index}: not an eventfd`
    const refusal = this.#start(index, fd.fd)
    if (refusal === null) fd.release()
    return refusal
  }

  /** VRING_KICK: the same as a signal on the kick descriptor. Starts a vring that has none. */
  #kick(index: number): Outcome {
    const vring = this.#state.vrings[index]
    if (vring === undefined) return `no ring ${index}`
    if (vring.kickFd < 0) {
      using event = new EventFd()
      const refusal = this.#start(index, event.fd)
      if (refusal !== null) return refusal
      event.release()
    }
    // It may be the front-end's descriptor.
    native.vn_peer_eventfd_signal(vring.kickFd)
    return null
  }

  /** Starts the vring. On success it owns `kickFd`. */
  #start(index: number, kickFd: number): Refusal {
    const { device, host } = this.#state.options
    const stopped = device.setVqReady(index, false)
    if (stopped !== null) return stopped
    if (!this.#state.negotiated(VHOST_USER_PROTOCOL_F_STATUS) && !device.driverOk) {
      const refused = device.setStatus(STARTED)
      if (refused !== null) return refused
    }
    const vring = this.#state.vrings[index]!
    this.#callInBand(index, vring)
    host.setKick(index, kickFd)
    host.setInflight(index, this.#inflight.regionOf(index))
    const refusal = device.setVqReady(index, true)
    if (refusal !== null) {
      host.setKick(index, vring.kickFd)
      return refusal
    }
    vring.setKick(kickFd)
    vring.kicked = true
    vring.started = true
    // Not before the first SET_VRING_ENABLE: a ring that runs while disabled would discard what waits in it after a
    // reconnect.
    if (vring.enabled === null) device.setVqReady(index, false)
    return null
  }

  /** If in-band notifications were negotiated, a vring without a call descriptor is called by messages. */
  #callInBand(index: number, vring: SessionVring): void {
    if (vring.call !== null || vring.callDeclined || vring.inBandCall !== null || this.#state.backend === null) return
    if (!this.#state.negotiated(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)) return
    vring.inBandCall = new EventFd()
    vring.inBandCallSlot = this.#poller.add(vring.inBandCall.fd, POLLIN)
    this.#state.options.host.setCall(index, ownTarget(vring.inBandCall.fd))
  }

  #setCall(fields: RequestFields['SET_VRING_CALL']): Outcome {
    const target = this.#signalOf(fields)
    if (typeof target === 'string') return target
    const { vring, signal } = target
    this.#state.options.host.setCall(fields.index, signal?.target ?? -1)
    vring.call?.[Symbol.dispose]()
    vring.call = signal
    vring.callDeclined = signal === null
    return null
  }

  #setErr(fields: RequestFields['SET_VRING_ERR']): Outcome {
    const target = this.#signalOf(fields)
    if (typeof target === 'string') return target
    target.vring.err?.[Symbol.dispose]()
    target.vring.err = target.signal
    return null
  }

  /** The vring and its signal target (null for none). A string says what is wrong. */
  #signalOf({
    index,
    fd,
  }: RequestFields['SET_VRING_CALL']): { readonly vring: SessionVring; readonly signal: PeerSignal | null } | string {
    const vring = this.#state.vrings[index]
    if (vring === undefined) return `no ring ${index}`
    if (fd === null) return { vring, signal: null }
    const signal = PeerSignal.adopt(fd.release())
    return signal === null ? `ring ${index}: not an eventfd or unix socket` : { vring, signal }
  }
}
