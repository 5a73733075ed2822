import {
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_CHECK_DEVICE_STATE,
  VHOST_USER_CONFIG,
  VHOST_USER_DEVICE_STATE,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_STATUS,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_INFLIGHT,
  VHOST_USER_LOG,
  VHOST_USER_MEM_REG_MSG,
  VHOST_USER_MEMORY,
  VHOST_USER_MEMORY_REGION,
  VHOST_USER_NET_SET_MTU,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_RESET_DEVICE,
  VHOST_USER_RESET_OWNER,
  VHOST_USER_SEND_RARP,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_CONFIG,
  VHOST_USER_SET_DEVICE_STATE_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_INFLIGHT_FD,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_LOG_FD,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_ERR,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_USER_VRING_KICK,
  VHOST_VRING_ADDR,
  VHOST_VRING_STATE,
} from '../../abi/vhost-user.ts'
import { ProtocolError } from '../../base/errors.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import type { InflightDescription } from './inflight-area.ts'
import { MEMORY_SLOTS, type MemoryRegionMessage } from './memory-table.ts'
import type { Session } from './session.ts'

/** What became of a request: refused and why, done (null), or an answer of its own. */
export type Outcome = Refusal | { readonly reply: Uint8Array; readonly fds?: readonly number[] }

/** One request of a front-end: what it must look like, and what to do with it. */
export type Request = {
  readonly name: string
  /** Length of the body, or the range it must lie in. */
  readonly size: number | readonly [number, number]
  /** How many descriptors it may bring. Those that the handler does not `keep` are closed after it. */
  readonly fds?: readonly [number, number]
  /** Protocol feature without which it is refused. Only where no front-end is known to go without. */
  readonly feature?: number
  readonly handle: (session: Session, body: DataView, fds: readonly number[], keep: () => void) => Outcome
}

/** An answer of 8 bytes. */
export const u64Reply = (value: bigint): { readonly reply: Uint8Array } => {
  const reply = new Uint8Array(8)
  new DataView(reply.buffer).setBigUint64(0, value, true)
  return { reply }
}

const u64Of = (body: DataView): bigint => body.getBigUint64(0, true)
const numberAt = (body: DataView, offset: number): number => Number(body.getBigUint64(offset, true))

const stateOf = (body: DataView): { readonly index: number; readonly num: number } => ({
  index: body.getUint32(VHOST_VRING_STATE.index, true),
  num: body.getUint32(VHOST_VRING_STATE.num, true),
})

const regionAt = (body: DataView, at: number, fd: number): MemoryRegionMessage => ({
  guestAddress: numberAt(body, at + VHOST_USER_MEMORY_REGION.guest_phys_addr),
  lengthBytes: numberAt(body, at + VHOST_USER_MEMORY_REGION.memory_size),
  userAddress: numberAt(body, at + VHOST_USER_MEMORY_REGION.userspace_addr),
  mmapOffset: numberAt(body, at + VHOST_USER_MEMORY_REGION.mmap_offset),
  fd,
})

const setMemTable: Request['handle'] = (session, body, fds) => {
  const count = body.getUint32(VHOST_USER_MEMORY.nregions, true)
  if (count === 0 || count > VHOST_MEMORY_BASELINE_NREGIONS) throw new ProtocolError(`${count} memory regions`)
  if (fds.length !== count) throw new ProtocolError(`${count} memory regions with ${fds.length} descriptors`)
  const bytes = count * VHOST_USER_MEMORY_REGION.sizeBytes
  if (body.byteLength < VHOST_USER_MEMORY.regions + bytes) return `${body.byteLength} bytes for ${count} regions`
  return session.setMemory(
    fds.map((fd, i) => regionAt(body, VHOST_USER_MEMORY.regions + i * VHOST_USER_MEMORY_REGION.sizeBytes, fd)),
  )
}

const inflightOf = (body: DataView): InflightDescription => ({
  lengthBytes: numberAt(body, VHOST_USER_INFLIGHT.mmap_size),
  offset: numberAt(body, VHOST_USER_INFLIGHT.mmap_offset),
  queues: body.getUint16(VHOST_USER_INFLIGHT.num_queues, true),
  queueSize: body.getUint16(VHOST_USER_INFLIGHT.queue_size, true),
})

/** With or without what the compiler puts behind the last field. */
const INFLIGHT_SIZE = [VHOST_USER_INFLIGHT.queue_size + 2, VHOST_USER_INFLIGHT.sizeBytes] as const

/** Nothing but a header is needed for a configuration, and a front-end may send or want as much as there could ever be. */
const CONFIG_SIZE = [VHOST_USER_CONFIG.payload, VHOST_USER_CONFIG.payload + 256] as const
const STATE_SIZE = VHOST_VRING_STATE.sizeBytes
const RING_FD = [0, 1] as const

const requests: ReadonlyMap<number, Request> = new Map<number, Request>([
  [VHOST_USER_GET_FEATURES, { name: 'GET_FEATURES', size: 0, handle: (s) => u64Reply(s.getFeatures()) }],
  [VHOST_USER_SET_FEATURES, { name: 'SET_FEATURES', size: 8, handle: (s, body) => s.setFeatures(u64Of(body)) }],
  [
    VHOST_USER_GET_PROTOCOL_FEATURES,
    { name: 'GET_PROTOCOL_FEATURES', size: 0, handle: (s) => u64Reply(s.getProtocolFeatures()) },
  ],
  [
    VHOST_USER_SET_PROTOCOL_FEATURES,
    { name: 'SET_PROTOCOL_FEATURES', size: 8, handle: (s, body) => s.setProtocolFeatures(u64Of(body)) },
  ],
  [VHOST_USER_SET_OWNER, { name: 'SET_OWNER', size: 0, handle: () => null }],
  // Deprecated, and defined by no two front-ends alike: the rings are stopped by GET_VRING_BASE in any case.
  [VHOST_USER_RESET_OWNER, { name: 'RESET_OWNER', size: 0, handle: () => null }],
  [
    VHOST_USER_SET_MEM_TABLE,
    {
      name: 'SET_MEM_TABLE',
      size: [
        VHOST_USER_MEMORY.sizeBytes,
        VHOST_USER_MEMORY.sizeBytes + VHOST_MEMORY_BASELINE_NREGIONS * VHOST_USER_MEMORY_REGION.sizeBytes,
      ],
      fds: [0, VHOST_MEMORY_BASELINE_NREGIONS],
      handle: setMemTable,
    },
  ],
  [VHOST_USER_GET_MAX_MEM_SLOTS, { name: 'GET_MAX_MEM_SLOTS', size: 0, handle: () => u64Reply(BigInt(MEMORY_SLOTS)) }],
  [
    VHOST_USER_ADD_MEM_REG,
    {
      name: 'ADD_MEM_REG',
      size: VHOST_USER_MEM_REG_MSG.sizeBytes,
      fds: [1, 1],
      handle: (s, body, [fd]) => s.addRegion(regionAt(body, VHOST_USER_MEM_REG_MSG.region.guest_phys_addr, fd!)),
    },
  ],
  [
    VHOST_USER_REM_MEM_REG,
    {
      name: 'REM_MEM_REG',
      size: VHOST_USER_MEM_REG_MSG.sizeBytes,
      // Some front-ends send the descriptor along. It is of no use, and closed.
      fds: [0, 1],
      handle: (s, body) => s.removeRegion(regionAt(body, VHOST_USER_MEM_REG_MSG.region.guest_phys_addr, -1)),
    },
  ],
  [
    VHOST_USER_SET_LOG_BASE,
    {
      name: 'SET_LOG_BASE',
      size: VHOST_USER_LOG.sizeBytes,
      fds: [1, 1],
      feature: VHOST_USER_PROTOCOL_F_LOG_SHMFD,
      handle: (s, body, [fd]) =>
        s.setLogBase(fd!, numberAt(body, VHOST_USER_LOG.mmap_size), numberAt(body, VHOST_USER_LOG.mmap_offset)),
    },
  ],
  [
    VHOST_USER_SET_LOG_FD,
    { name: 'SET_LOG_FD', size: [0, 8], fds: [1, 1], handle: (s, _body, [fd], keep) => s.setLogFd(fd!, keep) },
  ],
  [
    VHOST_USER_GET_INFLIGHT_FD,
    {
      name: 'GET_INFLIGHT_FD',
      size: INFLIGHT_SIZE,
      feature: VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
      handle: (s, body) => s.getInflight(inflightOf(body), body.byteLength),
    },
  ],
  [
    VHOST_USER_SET_INFLIGHT_FD,
    {
      name: 'SET_INFLIGHT_FD',
      size: INFLIGHT_SIZE,
      fds: [1, 1],
      feature: VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
      handle: (s, body, [fd]) => s.setInflight(inflightOf(body), fd!),
    },
  ],
  [
    VHOST_USER_SET_VRING_NUM,
    {
      name: 'SET_VRING_NUM',
      size: STATE_SIZE,
      handle: (s, body) => s.setVringNum(stateOf(body).index, stateOf(body).num),
    },
  ],
  [
    VHOST_USER_SET_VRING_ADDR,
    { name: 'SET_VRING_ADDR', size: VHOST_VRING_ADDR.sizeBytes, handle: (s, body) => s.setVringAddr(body) },
  ],
  [
    VHOST_USER_SET_VRING_BASE,
    {
      name: 'SET_VRING_BASE',
      size: STATE_SIZE,
      handle: (s, body) => s.setVringBase(stateOf(body).index, stateOf(body).num),
    },
  ],
  [
    VHOST_USER_GET_VRING_BASE,
    { name: 'GET_VRING_BASE', size: STATE_SIZE, handle: (s, body) => s.getVringBase(stateOf(body).index) },
  ],
  [
    VHOST_USER_SET_VRING_KICK,
    { name: 'SET_VRING_KICK', size: 8, fds: RING_FD, handle: (s, body, fds, keep) => s.setVringKick(body, fds, keep) },
  ],
  [
    VHOST_USER_SET_VRING_CALL,
    { name: 'SET_VRING_CALL', size: 8, fds: RING_FD, handle: (s, body, fds, keep) => s.setVringCall(body, fds, keep) },
  ],
  [
    VHOST_USER_SET_VRING_ERR,
    { name: 'SET_VRING_ERR', size: 8, fds: RING_FD, handle: (s, body, fds, keep) => s.setVringErr(body, fds, keep) },
  ],
  [
    VHOST_USER_SET_VRING_ENABLE,
    {
      name: 'SET_VRING_ENABLE',
      size: STATE_SIZE,
      handle: (s, body) => {
        const { index, num } = stateOf(body)
        return num > 1 ? `enable ${num}` : s.setVringEnable(index, num === 1)
      },
    },
  ],
  [
    VHOST_USER_VRING_KICK,
    {
      name: 'VRING_KICK',
      size: STATE_SIZE,
      feature: VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
      handle: (s, body) => s.kick(stateOf(body).index, stateOf(body).num),
    },
  ],
  [VHOST_USER_GET_QUEUE_NUM, { name: 'GET_QUEUE_NUM', size: 0, handle: (s) => u64Reply(BigInt(s.queuePairs())) }],
  [
    VHOST_USER_SEND_RARP,
    {
      name: 'SEND_RARP',
      size: 8,
      handle: (s, body) => s.sendRarp(new Uint8Array(body.buffer, body.byteOffset, 6)),
    },
  ],
  [VHOST_USER_NET_SET_MTU, { name: 'NET_SET_MTU', size: 8, handle: (s, body) => s.setMtu(u64Of(body)) }],
  [
    VHOST_USER_SET_BACKEND_REQ_FD,
    {
      name: 'SET_BACKEND_REQ_FD',
      size: [0, 8],
      fds: [1, 1],
      handle: (s, _body, [fd], keep) => s.setBackendFd(fd!, keep),
    },
  ],
  [VHOST_USER_GET_CONFIG, { name: 'GET_CONFIG', size: CONFIG_SIZE, handle: (s, body) => s.getConfig(body) }],
  [VHOST_USER_SET_CONFIG, { name: 'SET_CONFIG', size: CONFIG_SIZE, handle: (s, body) => s.setConfig(body) }],
  [VHOST_USER_SET_STATUS, { name: 'SET_STATUS', size: 8, handle: (s, body) => s.setStatus(u64Of(body)) }],
  [VHOST_USER_GET_STATUS, { name: 'GET_STATUS', size: 0, handle: (s) => u64Reply(BigInt(s.getStatus())) }],
  [
    VHOST_USER_SET_DEVICE_STATE_FD,
    {
      name: 'SET_DEVICE_STATE_FD',
      size: VHOST_USER_DEVICE_STATE.sizeBytes,
      // The front-end's channel is not used, and closed: its answer brings another one.
      fds: [1, 1],
      feature: VHOST_USER_PROTOCOL_F_DEVICE_STATE,
      handle: (s, body) =>
        s.beginStateTransfer(
          body.getUint32(VHOST_USER_DEVICE_STATE.direction, true),
          body.getUint32(VHOST_USER_DEVICE_STATE.phase, true),
        ),
    },
  ],
  [
    VHOST_USER_CHECK_DEVICE_STATE,
    {
      name: 'CHECK_DEVICE_STATE',
      size: 0,
      feature: VHOST_USER_PROTOCOL_F_DEVICE_STATE,
      handle: (s) => s.finishStateTransfer(),
    },
  ],
  [VHOST_USER_RESET_DEVICE, { name: 'RESET_DEVICE', size: 0, handle: (s) => s.resetDevice() }],
])

/** The request of that number, if there is one. */
export const requestOf = (number: number): Request | undefined => requests.get(number)
