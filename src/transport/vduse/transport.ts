import { constants } from 'node:os'
import {
  VDUSE_DEV_REQUEST,
  VDUSE_DEV_RESPONSE,
  VDUSE_GET_VQ_STATE,
  VDUSE_REQ_RESULT_FAILED,
  VDUSE_REQ_RESULT_OK,
  VDUSE_SET_STATUS,
  VDUSE_SET_VQ_GROUP_ASID,
  VDUSE_SET_VQ_READY,
  VDUSE_SUSPEND,
  VDUSE_UPDATE_IOTLB,
} from '../../abi/vduse.ts'
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../../abi/virtio.ts'
import { SysError } from '../../base/errors.ts'
import type { ControlTransport, TransportEnd } from '../../device/control-transport.ts'
import type { Refusal, VirtioNetDevice } from '../../device/virtio-net-device.ts'
import { addressOf, native } from '../../sys/native.ts'
import { POLLERR, POLLIN, type Poller } from '../../sys/poller.ts'
import type { VduseDevice } from './device-fd.ts'

const { EAGAIN, ENOENT } = constants.errno

/**
 * vhost-vdpa may set a queue ready after DRIVER_OK without a message. So queues that are not ready are polled, at
 * intervals that double from the first to the last.
 */
const READY_POLL_FIRST_MS = 20
const READY_POLL_LAST_MS = 1_000
/** Most requests answered in one turn, so that a flood does not starve the thread's other work. */
const REQUESTS_PER_TURN = 64

const hex = (value: number): string => `0x${value.toString(16)}`

/**
 * The control transport of one VDUSE device: reads requests from `/dev/vduse/NAME`, translates each to operations of
 * the virtio-net device, and answers it exactly once. Queue addresses and features, which have no message in mainline,
 * are fetched with ioctls once the status says that they are set. docs/control-messages.md.
 */
export class VduseTransport implements ControlTransport {
  readonly connected = true
  messages = 0
  ended: TransportEnd | null = null
  #poller: Poller | null = null
  #slot = -1
  readonly #vduse: VduseDevice
  readonly #device: VirtioNetDevice
  readonly #kickFds: readonly number[]
  readonly #refused: (what: string) => void
  readonly #request = new Uint8Array(VDUSE_DEV_REQUEST.sizeBytes)
  readonly #requestView = new DataView(this.#request.buffer)
  readonly #response = new Uint8Array(VDUSE_DEV_RESPONSE.sizeBytes)
  readonly #responseView = new DataView(this.#response.buffer)
  readonly #nowMs: () => number
  /** Poll for queues that are not ready yet: when next, and where the queues start; null if all are ready. */
  #readyPoll: { atMs: number; delayMs: number; readonly from: 'used' | null } | null = null

  /**
   * `kickFds`: an eventfd for each queue. `refused` is called for each request answered with VDUSE_REQ_RESULT_FAILED.
   */
  constructor(
    vduse: VduseDevice,
    device: VirtioNetDevice,
    kickFds: readonly number[],
    refused: (what: string) => void,
    nowMs: () => number = () => performance.now(),
  ) {
    this.#nowMs = nowMs
    this.#vduse = vduse
    this.#device = device
    this.#kickFds = kickFds
    this.#refused = refused
  }

  watch(poller: Poller): void {
    this.#poller = poller
    this.#slot = poller.add(this.#vduse.fd, POLLIN)
  }

  /** Answers the pending requests. Throws SysError. */
  serve(): void {
    const ready = this.#poller?.ready(this.#slot) ?? 0
    if (ready === 0) return
    if ((ready & POLLERR) !== 0) {
      this.ended = {
        why: 'the kernel has marked the device broken: a control message was not answered in time',
        failed: true,
      }
      return
    }
    for (let i = 0; i < REQUESTS_PER_TURN; i++) {
      const length = native.vn_read(this.#vduse.fd, addressOf(this.#request), this.#request.length)
      if (length === -EAGAIN) return
      if (length < 0) throw new SysError('read(/dev/vduse/NAME)', -length)
      this.#answer()
      // Queues start only now: the kernel refuses interrupts until it has the answer to DRIVER_OK.
      this.#device.settle()
    }
  }

  tick(): number {
    const poll = this.#readyPoll
    if (poll === null) return -1
    const nowMs = this.#nowMs()
    if (nowMs < poll.atMs) return Math.ceil(poll.atMs - nowMs)
    if (this.#loadReadyQueues(poll.from)) this.#readyPoll = null
    poll.delayMs = Math.min(poll.delayMs * 2, READY_POLL_LAST_MS)
    poll.atMs = nowMs + poll.delayMs
    this.#device.settle()
    return this.#readyPoll === null ? -1 : poll.delayMs
  }

  /**
   * Takes over the device of a process that died. True if its driver is running: the kernel has kept queue addresses
   * and features, and the used rings hold the position. Otherwise the driver will set the device up with messages.
   */
  adopt(): boolean {
    // This ioctl succeeds only with DRIVER_OK (vduse_dev.c, vduse_dev_queue_irq_work).
    if (!this.#vduse.injectConfigIrq()) return false
    this.#device.adopt(
      VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK,
      this.#vduse.driverFeatures(),
    )
    this.#startQueues('used')
    this.#device.settle()
    return true
  }

  configChanged(offset: number, bytes: Uint8Array): void {
    this.#vduse.setConfig(offset, bytes)
    this.#vduse.injectConfigIrq()
  }

  /** Nothing: VDUSE cannot report DEVICE_NEEDS_RESET. The link goes down instead. */
  queueFailed(): void {}

  [Symbol.dispose](): void {
    this.#poller?.remove(this.#slot)
  }

  #answer(): void {
    const view = this.#requestView
    this.#response.fill(0)
    const type = view.getUint32(VDUSE_DEV_REQUEST.type, true)
    const refusal = this.#carryOut(type)
    if (refusal !== null) this.#refused(refusal)
    const response = this.#responseView
    response.setUint32(VDUSE_DEV_RESPONSE.request_id, view.getUint32(VDUSE_DEV_REQUEST.request_id, true), true)
    response.setUint32(
      VDUSE_DEV_RESPONSE.result,
      refusal === null ? VDUSE_REQ_RESULT_OK : VDUSE_REQ_RESULT_FAILED,
      true,
    )
    const written = native.vn_write(this.#vduse.fd, addressOf(this.#response), this.#response.length)
    // ENOENT: the kernel's wait for the answer has timed out or was interrupted.
    if (written < 0 && written !== -ENOENT) throw new SysError('write(/dev/vduse/NAME)', -written)
    this.messages++
  }

  #carryOut(type: number): Refusal {
    const view = this.#requestView
    const body = VDUSE_DEV_REQUEST.body
    switch (type) {
      case VDUSE_GET_VQ_STATE:
        return this.#getVqState(view.getUint32(body.vq_state.index, true))
      case VDUSE_SET_STATUS:
        return this.#setStatus(view.getUint8(body.s.status))
      case VDUSE_UPDATE_IOTLB: {
        const [start, last] = [view.getBigUint64(body.iova.start, true), view.getBigUint64(body.iova.last, true)]
        return this.#device.updateIotlb(Number(start), Number(last))
      }
      case VDUSE_SET_VQ_GROUP_ASID: {
        const group = view.getUint32(body.vq_group_asid.group, true)
        const asid = view.getUint32(body.vq_group_asid.asid, true)
        return group === 0 && asid === 0 ? null : `group ${group}, address space ${asid}: there is only one of each`
      }
      case VDUSE_SET_VQ_READY: {
        const index = view.getUint32(body.vq_ready.num, true)
        // This kernel sends a message for each queue, so no polling is needed.
        this.#readyPoll = null
        if (view.getUint32(body.vq_ready.ready, true) === 0) return this.#device.setVqReady(index, false)
        // The kernel's ready flag has the old value until this request is answered.
        return index < this.#device.queueCount ? this.#loadQueue(index, null) : `no queue ${index}`
      }
      case VDUSE_SUSPEND:
        this.#readyPoll = null
        this.#device.suspend()
        return null
      default:
        return `request of unknown type ${type}`
    }
  }

  #getVqState(index: number): Refusal {
    const base = this.#device.getVqState(index)
    if (base === null) return `no queue ${index}`
    const body = VDUSE_DEV_RESPONSE.body.vq_state
    this.#responseView.setUint32(body.index, index, true)
    this.#responseView.setUint16(body.state.split.avail_index, base, true)
    return null
  }

  #setStatus(status: number): Refusal {
    const added = status & ~this.#device.getStatus()
    if (status === 0) this.#readyPoll = null
    if ((added & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      const refusal = this.#device.setFeatures(this.#vduse.driverFeatures())
      if (refusal !== null) return refusal
    }
    const refusal = this.#device.setStatus(status)
    if (refusal !== null) return `status ${hex(status)}: ${refusal}`
    if ((added & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) this.#startQueues(null)
    return null
  }

  /** Loads the queues that are ready, and polls for the others. `from` as for {@link #loadReadyQueues}. */
  #startQueues(from: 'used' | null): void {
    const allReady = this.#loadReadyQueues(from)
    this.#readyPoll = allReady
      ? null
      : { atMs: this.#nowMs() + READY_POLL_FIRST_MS, delayMs: READY_POLL_FIRST_MS, from }
  }

  /**
   * Loads the configuration of each queue that is ready. True if all are. `from`: 'used' to start at the used ring's
   * index, null to start at the driver's base.
   */
  #loadReadyQueues(from: 'used' | null): boolean {
    let all = true
    for (let index = 0; index < this.#device.queueCount; index++) {
      if (this.#device.getVqReady(index)) continue
      if (!this.#vduse.vqInfo(index).ready) {
        all = false
        continue
      }
      const refusal = this.#loadQueue(index, from)
      if (refusal !== null) this.#refused(refusal)
    }
    return all
  }

  #loadQueue(index: number, from: 'used' | null): Refusal {
    const info = this.#vduse.vqInfo(index)
    const refusal =
      this.#device.setVqNum(index, info.size) ??
      this.#device.setVqAddr(index, info.descAddr, info.availAddr, info.usedAddr) ??
      this.#device.setVqState(index, from ?? info.availIndex)
    if (refusal !== null) return refusal
    // A reset drops the kick eventfd.
    this.#vduse.setKickFd(index, this.#kickFds[index]!)
    return this.#device.setVqReady(index, true)
  }
}
