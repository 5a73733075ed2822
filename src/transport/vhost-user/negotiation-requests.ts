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

/** What this back-end speaks beside the basics. */
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

/** Virtio feature bits that are about the transport, not about the device. */
const TRANSPORT_FEATURES: Features = featureBit(VHOST_USER_F_PROTOCOL_FEATURES) | featureBit(VHOST_F_LOG_ALL)

/**
 * What a front-end serves that keeps the control queue to itself. The headers' length is for who moves packets, though.
 */
const OF_OWN_CONTROL_QUEUE: Features = controlQueueFeatures & ~featureBit(VIRTIO_NET_F_HASH_REPORT)

const DRIVER_FOUND = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER

/** Requests about the device as a whole: which features are used, and its status. */
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
    // Deprecated, and defined by no two front-ends alike: the rings are stopped by GET_VRING_BASE in any case.
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
  /** The driver's features with the transport's own, as the front-end has set them. */
  #features: Features = 0n

  constructor(state: SessionState, vrings: VringRequests, logging: DirtyLogging) {
    this.#state = state
    this.#vrings = vrings
    this.#logging = logging
  }

  /** Makes the device as new: no ring runs until it has been set up again. */
  abandonDriver(): void {
    this.#state.options.device.setStatus(0)
    this.#state.forgetKicks()
  }

  /**
   * QEMU has a network card's configuration space itself, and warns of each back-end that offers CONFIG. It asks for
   * protocol features before it sends SET_OWNER, and again for each queue pair; who reads the card's configuration
   * space sends SET_OWNER first.
   */
  get #offeredProtocolFeatures(): bigint {
    const wantsConfig = this.#protocolChosen ? this.#state.speaks(VHOST_USER_PROTOCOL_F_CONFIG) : this.#owned
    return wantsConfig ? this.#protocolFeatures : this.#protocolFeatures & ~featureBit(VHOST_USER_PROTOCOL_F_CONFIG)
  }

  get #protocolFeatures(): bigint {
    const { inBand } = this.#state.options
    return PROTOCOL_FEATURES | (inBand ? featureBit(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) : 0n)
  }

  /** A front-end that has declined CONFIG cannot pass on that the driver is to announce itself. */
  get #offeredFeatures(): Features {
    const { offeredFeatures } = this.#state.options.device
    const tells = !this.#protocolChosen || this.#state.speaks(VHOST_USER_PROTOCOL_F_CONFIG)
    return tells ? offeredFeatures : offeredFeatures & ~featureBit(VIRTIO_NET_F_GUEST_ANNOUNCE)
  }

  #setFeatures(features: Features): Outcome {
    const { device } = this.#state.options
    // A front-end like QEMU serves the control queue itself, and takes only the bits along that it needs of a back-end.
    const ofDriver = features & ~TRANSPORT_FEATURES
    const chosen = hasFeature(ofDriver, VIRTIO_NET_F_CTRL_VQ) ? ofDriver : ofDriver & ~OF_OWN_CONTROL_QUEUE
    const agreed = (device.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) !== 0 && chosen === device.chosenFeatures
    const inUse = this.#state.vrings.some((vring, index) => vring.kicked || device.getVqReady(index))
    // QEMU says the same again for each queue pair, while the rings of the pairs before wait for the driver.
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

  /** Sets the device up for a driver. On a refusal it is as new: no ring starts until there is another choice. */
  #choose(features: Features): Outcome {
    const { device } = this.#state.options
    if (this.#state.anyRunning) return 'features changed while a ring runs'
    // A driver that sets itself up anew, seen through a front-end without SET_STATUS.
    if ((device.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      device.renew()
      this.#state.forgetKicks()
    }
    const refusal = device.setFeatures(features) ?? this.#setFeaturesOk()
    if (refusal !== null) this.abandonDriver()
    return refusal
  }

  /** What a front-end without SET_STATUS leaves to the back-end. */
  #setFeaturesOk(): Refusal {
    if (this.#state.speaks(VHOST_USER_PROTOCOL_F_STATUS)) return null
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
    // QEMU enables the rings before it has sent any features, and before there is anything to enable. DPDK disables
    // them when it connects anew, before it has negotiated anything: so they are.
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

  /** All rings stopped and disabled, the device as new. Memory and descriptors stay. */
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
