import {
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../../abi/vhost-user.ts'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_HASH_REPORT,
} from '../../abi/virtio.ts'
import { ProtocolError } from '../../base/errors.ts'
import { controlQueueFeatures, type Features, featureBit, hasFeature } from '../../device/features.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import type { DirtyLogging } from './dirty-logging.ts'
import { type Handlers, type Outcome, type RequestFields, u64Reply } from './requests.ts'
import type { SessionState } from './session-state.ts'
import type { VringRequests } from './vring-requests.ts'

type Names =
  | 'GET_FEATURES'
  | 'SET_FEATURES'
  | 'GET_PROTOCOL_FEATURES'
  | 'SET_PROTOCOL_FEATURES'
  | 'SET_OWNER'
  | 'RESET_OWNER'
  | 'SET_VRING_ENABLE'
  | 'GET_QUEUE_NUM'
  | 'NET_SET_MTU'
  | 'SET_STATUS'
  | 'GET_STATUS'
  | 'RESET_DEVICE'

/** Protocol features of this back-end. */
const PROTOCOL_FEATURES = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
].reduce((set, bit) => set | featureBit(bit), 0n)

/** Virtio feature bits of the transport; they are not the device's. */
const TRANSPORT_FEATURES: Features = featureBit(VHOST_USER_F_PROTOCOL_FEATURES) | featureBit(VHOST_F_LOG_ALL)

/**
 * Features that the front-end implements if it serves the control queue itself. HASH_REPORT is not among them: it
 * changes the header length, which is the back-end's.
 */
const FRONT_END_CONTROL_FEATURES: Features = controlQueueFeatures & ~featureBit(VIRTIO_NET_F_HASH_REPORT)

const DRIVER_FOUND = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER

/** Requests about the device as a whole: features and status. */
export class NegotiationRequests {
  readonly handlers: Handlers<Names> = {
    GET_FEATURES: () => u64Reply(this.#offeredFeatures | TRANSPORT_FEATURES),
    SET_FEATURES: ({ features }) => this.#setFeatures(features),
    GET_PROTOCOL_FEATURES: () => u64Reply(this.#offeredProtocolFeatures),
    SET_PROTOCOL_FEATURES: ({ features }) => this.#setProtocolFeatures(features),
    SET_OWNER: () => {
      this.#owned = true
      return null
    },
    // Deprecated, and front-ends differ in its meaning. Nothing to do: GET_VRING_BASE stops the rings.
    RESET_OWNER: () => null,
    SET_VRING_ENABLE: (fields) => this.#setVringEnable(fields),
    GET_QUEUE_NUM: () => u64Reply(BigInt(this.#state.options.pairs)),
    NET_SET_MTU: ({ mtu }) => this.#state.options.device.setMtu(Number(mtu)),
    SET_STATUS: ({ status }) => this.#setStatus(status),
    GET_STATUS: () => u64Reply(BigInt(this.#state.options.device.getStatus())),
    RESET_DEVICE: () => this.#resetDevice(),
  }
  readonly #state: SessionState
  readonly #vrings: VringRequests
  readonly #logging: DirtyLogging
  /** The front-end has sent SET_OWNER. */
  #owned = false
  /** The front-end has sent SET_PROTOCOL_FEATURES. */
  #protocolChosen = false
  /** The features of SET_FEATURES, those of the transport included. */
  #features: Features = 0n

  constructor(state: SessionState, vrings: VringRequests, logging: DirtyLogging) {
    this.#state = state
    this.#vrings = vrings
    this.#logging = logging
  }

  /** Resets the device: no ring runs until it has been set up again. */
  abandonDriver(): void {
    this.#state.options.device.setStatus(0)
    this.#state.forgetKicks()
  }

  /**
   * CONFIG is offered only after SET_OWNER. QEMU keeps a network device's configuration space itself and logs a warning
   * for each back-end that offers CONFIG; it asks for protocol features before SET_OWNER, and again for each queue
   * pair. A front-end that reads the configuration space sends SET_OWNER first.
   */
  get #offeredProtocolFeatures(): bigint {
    const wantsConfig = this.#protocolChosen ? this.#state.negotiated(VHOST_USER_PROTOCOL_F_CONFIG) : this.#owned
    return wantsConfig ? this.#protocolFeatures : this.#protocolFeatures & ~featureBit(VHOST_USER_PROTOCOL_F_CONFIG)
  }

  get #protocolFeatures(): bigint {
    const { inBand } = this.#state.options
    return PROTOCOL_FEATURES | (inBand ? featureBit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) : 0n)
  }

  /**
   * GUEST_ANNOUNCE is not offered to a front-end that has declined CONFIG: it cannot pass the announcement request on.
   */
  get #offeredFeatures(): Features {
    const { offeredFeatures } = this.#state.options.device
    const tells = !this.#protocolChosen || this.#state.negotiated(VHOST_USER_PROTOCOL_F_CONFIG)
    return tells ? offeredFeatures : offeredFeatures & ~featureBit(VIRTIO_NET_F_GUEST_ANNOUNCE)
  }

  #setFeatures(features: Features): Outcome {
    const { device } = this.#state.options
    // Without CTRL_VQ the front-end (QEMU) serves the control queue itself. Feature bits of that queue are ignored
    // then.
    const ofDriver = features & ~TRANSPORT_FEATURES
    const chosen = hasFeature(ofDriver, VIRTIO_NET_F_CTRL_VQ) ? ofDriver : ofDriver & ~FRONT_END_CONTROL_FEATURES
    const agreed = (device.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) !== 0 && chosen === device.chosenFeatures
    const inUse = this.#state.vrings.some((vring, index) => vring.kicked || device.getVqReady(index))
    // QEMU repeats SET_FEATURES for each queue pair, when earlier pairs' rings are already set up: the same set is
    // accepted.
    if (!agreed || (device.driverOk && !inUse)) {
      const refusal = this.#choose(chosen)
      if (refusal !== null) return refusal
    }
    const refusal = this.#logging.setEnabled(hasFeature(features, VHOST_F_LOG_ALL))
    if (refusal !== null) return refusal
    this.#features = features
    if (!hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES)) {
      for (const index of this.#state.vrings.keys()) this.#vrings.enable(index, true)
    }
    return null
  }

  /** Negotiates the features with the device. A refusal resets it: no ring starts until the next SET_FEATURES. */
  #choose(features: Features): Outcome {
    const { device } = this.#state.options
    if (this.#state.anyRunning) return 'features changed while a ring runs'
    // Without SET_STATUS this is how a reset by the driver becomes visible.
    if ((device.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      device.renew()
      this.#state.forgetKicks()
    }
    const refusal = device.setFeatures(features) ?? this.#setFeaturesOk()
    if (refusal !== null) this.abandonDriver()
    return refusal
  }

  /** Sets the status bits that a front-end without SET_STATUS leaves to the back-end. */
  #setFeaturesOk(): Refusal {
    if (this.#state.negotiated(VHOST_USER_PROTOCOL_F_STATUS)) return null
    const { device } = this.#state.options
    return device.setStatus(DRIVER_FOUND) ?? device.setStatus(DRIVER_FOUND | VIRTIO_CONFIG_S_FEATURES_OK)
  }

  #setProtocolFeatures(features: bigint): Outcome {
    const extra = features & ~this.#protocolFeatures
    if (extra !== 0n) return `0x${extra.toString(16)} were not offered`
    const partners = featureBit(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | featureBit(VHOST_USER_PROTOCOL_F_REPLY_ACK)
    if (hasFeature(features, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) && (features & partners) !== partners)
      throw new ProtocolError('in-band notifications without BACKEND_REQ and REPLY_ACK')
    this.#state.protocolFeatures = features
    this.#protocolChosen = true
    return null
  }

  #setVringEnable({ index, enabled }: RequestFields['SET_VRING_ENABLE']): Outcome {
    if (this.#state.vrings[index] === undefined) return `no ring ${index}`
    // Before any negotiation QEMU enables the rings, which is refused, and DPDK disables them when it reconnects, which
    // is the state that they are in.
    const negotiated = this.#protocolChosen || hasFeature(this.#features, VHOST_USER_F_PROTOCOL_FEATURES)
    if (!negotiated) return enabled ? 'protocol features were not negotiated' : null
    this.#vrings.enable(index, enabled)
    return null
  }

  #setStatus(status: bigint): Outcome {
    if (status > 0xffn) return `status 0x${status.toString(16)}`
    if (status === 0n) this.#state.forgetKicks()
    return this.#state.options.device.setStatus(Number(status))
  }

  /** Stops and disables all rings and resets the device. Memory and descriptors stay. */
  #resetDevice(): Outcome {
    const { host } = this.#state.options
    this.abandonDriver()
    for (const [index, vring] of this.#state.vrings.entries()) {
      vring.enabled = null
      host.setEnabled(index, false)
    }
    return null
  }
}
