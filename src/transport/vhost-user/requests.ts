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
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_KICK,
  VHOST_USER_VRING_NOFD_MASK,
  VHOST_VRING_ADDR,
  VHOST_VRING_F_LOG,
  VHOST_VRING_STATE,
} from '../../abi/vhost-user.ts'
import { ProtocolError } from '../../base/errors.ts'
import { hasFeature } from '../../device/features.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import type { OwnedFd } from '../../sys/fd.ts'
import type { Message } from './connection.ts'
import type { InflightDescription } from './inflight-area.ts'
import type { MemoryRegionMessage } from './memory-table.ts'

type Nothing = Readonly<Record<never, never>>
type FeatureFields = { readonly features: bigint }
type RegionFields = { readonly region: MemoryRegionMessage }
/** `index` is unchecked: there may be no such vring. */
type VringFields = { readonly index: number }
/** `fd`: null if the message says that there is none. */
type VringFdFields = VringFields & { readonly fd: OwnedFd | null }

/**
 * Fields of each request, by its name in docs/interop/vhost-user.rst. Descriptors are closed after the request unless
 * its handler releases them.
 */
export type RequestFields = {
  GET_FEATURES: Nothing
  SET_FEATURES: FeatureFields
  GET_PROTOCOL_FEATURES: Nothing
  SET_PROTOCOL_FEATURES: FeatureFields
  SET_OWNER: Nothing
  RESET_OWNER: Nothing
  SET_MEM_TABLE: { readonly regions: readonly MemoryRegionMessage[] }
  GET_MAX_MEM_SLOTS: Nothing
  ADD_MEM_REG: RegionFields
  REM_MEM_REG: RegionFields
  SET_LOG_BASE: { readonly fd: OwnedFd; readonly lengthBytes: number; readonly offset: number }
  SET_LOG_FD: { readonly fd: OwnedFd }
  /** `answerBytes`: length of the request's body, which the answer repeats. */
  GET_INFLIGHT_FD: { readonly description: InflightDescription; readonly answerBytes: number }
  SET_INFLIGHT_FD: { readonly description: InflightDescription; readonly fd: OwnedFd }
  SET_VRING_NUM: VringFields & { readonly size: number }
  /** Addresses are the front-end's own; `log` is a guest address, -1 to not log the used ring. */
  SET_VRING_ADDR: VringFields & {
    readonly desc: number
    readonly avail: number
    readonly used: number
    readonly log: number
  }
  SET_VRING_BASE: VringFields & { readonly base: number }
  GET_VRING_BASE: VringFields
  SET_VRING_KICK: VringFdFields
  SET_VRING_CALL: VringFdFields
  SET_VRING_ERR: VringFdFields
  SET_VRING_ENABLE: VringFields & { readonly enabled: boolean }
  VRING_KICK: VringFields
  GET_QUEUE_NUM: Nothing
  SEND_RARP: { readonly mac: Uint8Array }
  NET_SET_MTU: { readonly mtu: bigint }
  SET_BACKEND_REQ_FD: { readonly fd: OwnedFd }
  GET_CONFIG: { readonly offset: number; readonly size: number; readonly flags: number }
  SET_CONFIG: { readonly offset: number; readonly bytes: Uint8Array }
  SET_STATUS: { readonly status: bigint }
  GET_STATUS: Nothing
  SET_DEVICE_STATE_FD: { readonly direction: number; readonly phase: number }
  CHECK_DEVICE_STATE: Nothing
  RESET_DEVICE: Nothing
}

export type RequestName = keyof RequestFields

/** Result of a request: done (null), refused (a string says why), or a reply of its own. */
export type Outcome = Refusal | { readonly reply: Uint8Array; readonly fds?: readonly number[] }

/** A handler for each request. */
export type Handlers<Names extends RequestName = RequestName> = {
  readonly [Name in Names]: (fields: RequestFields[Name]) => Outcome
}

/** A reply with a 64-bit payload. */
export const u64Reply = (value: bigint): { readonly reply: Uint8Array } => {
  const reply = new Uint8Array(8)
  new DataView(reply.buffer).setBigUint64(0, value, true)
  return { reply }
}

/** A decoded request. `fields` are those of `name`. */
export type Request = { readonly name: RequestName; readonly fields: RequestFields[RequestName] }

/** Result of decoding a message; `refusal` says why it is not a valid request. */
export type Decoded = Request | { readonly name: string; readonly refusal: string }

type Decode<Name extends RequestName> = (body: DataView, fds: readonly OwnedFd[]) => RequestFields[Name] | string

type Form = {
  readonly name: RequestName
  /** Length of the body, or the range it must lie in. */
  readonly size: number | readonly [number, number]
  /** Least and most descriptors that it may carry. */
  readonly fds: readonly [number, number]
  /** Protocol feature that it requires, if every known front-end negotiates that feature before; else null. */
  readonly feature: number | null
  /** The fields, or what is wrong with them. @throws ProtocolError if the descriptors do not match the message */
  readonly decode: Decode<RequestName>
}

const form = <Name extends RequestName>(
  number: number,
  name: Name,
  size: Form['size'],
  decode: Decode<Name>,
  { fds = [0, 0], feature = null }: Partial<Pick<Form, 'fds' | 'feature'>> = {},
): [number, Form] => [number, { name, size, fds, feature, decode }]

const nothing = (): Nothing => ({})
const u64At = (body: DataView, offset: number): bigint => body.getBigUint64(offset, true)
const numberAt = (body: DataView, offset: number): number => Number(u64At(body, offset))
const u32At = (body: DataView, offset: number): number => body.getUint32(offset, true)
const features = (body: DataView): FeatureFields => ({ features: u64At(body, 0) })

const stateOf = (body: DataView): { readonly index: number; readonly num: number } => ({
  index: u32At(body, VHOST_VRING_STATE.index),
  num: u32At(body, VHOST_VRING_STATE.num),
})

const regionAt = (body: DataView, at: number, fd: number): MemoryRegionMessage => ({
  guestAddress: numberAt(body, at + VHOST_USER_MEMORY_REGION.guest_phys_addr),
  lengthBytes: numberAt(body, at + VHOST_USER_MEMORY_REGION.memory_size),
  userAddress: numberAt(body, at + VHOST_USER_MEMORY_REGION.userspace_addr),
  mmapOffset: numberAt(body, at + VHOST_USER_MEMORY_REGION.mmap_offset),
  fd,
})

const memTable: Decode<'SET_MEM_TABLE'> = (body, fds) => {
  const count = u32At(body, VHOST_USER_MEMORY.nregions)
  if (count === 0 || count > VHOST_MEMORY_BASELINE_NREGIONS) throw new ProtocolError(`${count} memory regions`)
  if (fds.length !== count) throw new ProtocolError(`${count} memory regions with ${fds.length} descriptors`)
  const bytes = count * VHOST_USER_MEMORY_REGION.sizeBytes
  if (body.byteLength < VHOST_USER_MEMORY.regions + bytes) return `${body.byteLength} bytes for ${count} regions`
  const at = (i: number): number => VHOST_USER_MEMORY.regions + i * VHOST_USER_MEMORY_REGION.sizeBytes
  return { regions: fds.map(({ fd }, i) => regionAt(body, at(i), fd)) }
}

const inflightOf = (body: DataView): InflightDescription => ({
  lengthBytes: numberAt(body, VHOST_USER_INFLIGHT.mmap_size),
  offset: numberAt(body, VHOST_USER_INFLIGHT.mmap_offset),
  queues: body.getUint16(VHOST_USER_INFLIGHT.num_queues, true),
  queueSize: body.getUint16(VHOST_USER_INFLIGHT.queue_size, true),
})

const vringAddr: Decode<'SET_VRING_ADDR'> = (body) => {
  const logged = (u32At(body, VHOST_VRING_ADDR.flags) & (1 << VHOST_VRING_F_LOG)) !== 0
  return {
    index: u32At(body, VHOST_VRING_ADDR.index),
    desc: numberAt(body, VHOST_VRING_ADDR.descriptor),
    avail: numberAt(body, VHOST_VRING_ADDR.available),
    used: numberAt(body, VHOST_VRING_ADDR.used),
    log: logged ? numberAt(body, VHOST_VRING_ADDR.log) : -1,
  }
}

const vringFd = (body: DataView, fds: readonly OwnedFd[]): VringFdFields | string => {
  const value = u64At(body, 0)
  const index = Number(value & BigInt(VHOST_USER_VRING_IDX_MASK))
  if (value >> 9n !== 0n) return `no ring 0x${value.toString(16)}`
  const noFd = (value & BigInt(VHOST_USER_VRING_NOFD_MASK)) !== 0n
  if (noFd !== (fds.length === 0)) throw new ProtocolError('the message and its descriptors do not agree')
  return { index, fd: fds[0] ?? null }
}

const vringEnable: Decode<'SET_VRING_ENABLE'> = (body) => {
  const { index, num } = stateOf(body)
  return num > 1 ? `enable ${num}` : { index, enabled: num === 1 }
}

const vringKick: Decode<'VRING_KICK'> = (body) => {
  const { index, num } = stateOf(body)
  return num === 0 ? { index } : `reserved ${num}`
}

const getConfig: Decode<'GET_CONFIG'> = (body) => {
  const size = u32At(body, VHOST_USER_CONFIG.size)
  if (size !== body.byteLength - VHOST_USER_CONFIG.payload) return 'size and length do not agree'
  return { offset: u32At(body, VHOST_USER_CONFIG.offset), size, flags: u32At(body, VHOST_USER_CONFIG.flags) }
}

const setConfig: Decode<'SET_CONFIG'> = (body) => {
  const size = u32At(body, VHOST_USER_CONFIG.size)
  if (size !== body.byteLength - VHOST_USER_CONFIG.payload) return 'size and length do not agree'
  const bytes = new Uint8Array(body.buffer, body.byteOffset + VHOST_USER_CONFIG.payload, size)
  return { offset: u32At(body, VHOST_USER_CONFIG.offset), bytes }
}

/** With or without the structure's trailing padding. */
const INFLIGHT_SIZE = [VHOST_USER_INFLIGHT.queue_size + 2, VHOST_USER_INFLIGHT.sizeBytes] as const
/** From the header alone up to the largest configuration space, 256 bytes. */
const CONFIG_SIZE = [VHOST_USER_CONFIG.payload, VHOST_USER_CONFIG.payload + 256] as const
const STATE_SIZE = VHOST_VRING_STATE.sizeBytes
const MEM_TABLE_SIZE = [
  VHOST_USER_MEMORY.sizeBytes,
  VHOST_USER_MEMORY.sizeBytes + VHOST_MEMORY_BASELINE_NREGIONS * VHOST_USER_MEMORY_REGION.sizeBytes,
] as const
const MEM_REG_SIZE = VHOST_USER_MEM_REG_MSG.sizeBytes
const REGION_AT = VHOST_USER_MEM_REG_MSG.region.guest_phys_addr
const ONE_FD = [1, 1] as const
const RING_FD = { fds: [0, 1] } as const
const INFLIGHT = VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD
const DEVICE_STATE = VHOST_USER_PROTOCOL_F_DEVICE_STATE

const forms: ReadonlyMap<number, Form> = new Map([
  form(VHOST_USER_GET_FEATURES, 'GET_FEATURES', 0, nothing),
  form(VHOST_USER_SET_FEATURES, 'SET_FEATURES', 8, features),
  form(VHOST_USER_GET_PROTOCOL_FEATURES, 'GET_PROTOCOL_FEATURES', 0, nothing),
  form(VHOST_USER_SET_PROTOCOL_FEATURES, 'SET_PROTOCOL_FEATURES', 8, features),
  form(VHOST_USER_SET_OWNER, 'SET_OWNER', 0, nothing),
  form(VHOST_USER_RESET_OWNER, 'RESET_OWNER', 0, nothing),
  form(VHOST_USER_SET_MEM_TABLE, 'SET_MEM_TABLE', MEM_TABLE_SIZE, memTable, {
    fds: [0, VHOST_MEMORY_BASELINE_NREGIONS],
  }),
  form(VHOST_USER_GET_MAX_MEM_SLOTS, 'GET_MAX_MEM_SLOTS', 0, nothing),
  form(
    VHOST_USER_ADD_MEM_REG,
    'ADD_MEM_REG',
    MEM_REG_SIZE,
    (body, [file]) => ({ region: regionAt(body, REGION_AT, file!.fd) }),
    { fds: ONE_FD },
  ),
  // Some front-ends send the descriptor as well. It is closed unused.
  form(
    VHOST_USER_REM_MEM_REG,
    'REM_MEM_REG',
    MEM_REG_SIZE,
    (body) => ({ region: regionAt(body, REGION_AT, -1) }),
    RING_FD,
  ),
  form(
    VHOST_USER_SET_LOG_BASE,
    'SET_LOG_BASE',
    VHOST_USER_LOG.sizeBytes,
    (body, [fd]) => ({
      fd: fd!,
      lengthBytes: numberAt(body, VHOST_USER_LOG.mmap_size),
      offset: numberAt(body, VHOST_USER_LOG.mmap_offset),
    }),
    { fds: ONE_FD, feature: VHOST_USER_PROTOCOL_F_LOG_SHMFD },
  ),
  form(VHOST_USER_SET_LOG_FD, 'SET_LOG_FD', [0, 8], (_body, [fd]) => ({ fd: fd! }), { fds: ONE_FD }),
  form(
    VHOST_USER_GET_INFLIGHT_FD,
    'GET_INFLIGHT_FD',
    INFLIGHT_SIZE,
    (body) => ({ description: inflightOf(body), answerBytes: body.byteLength }),
    { feature: INFLIGHT },
  ),
  form(
    VHOST_USER_SET_INFLIGHT_FD,
    'SET_INFLIGHT_FD',
    INFLIGHT_SIZE,
    (body, [fd]) => ({ description: inflightOf(body), fd: fd! }),
    { fds: ONE_FD, feature: INFLIGHT },
  ),
  form(VHOST_USER_SET_VRING_NUM, 'SET_VRING_NUM', STATE_SIZE, (body) => {
    const { index, num } = stateOf(body)
    return { index, size: num }
  }),
  form(VHOST_USER_SET_VRING_ADDR, 'SET_VRING_ADDR', VHOST_VRING_ADDR.sizeBytes, vringAddr),
  form(VHOST_USER_SET_VRING_BASE, 'SET_VRING_BASE', STATE_SIZE, (body) => {
    const { index, num } = stateOf(body)
    return { index, base: num }
  }),
  form(VHOST_USER_GET_VRING_BASE, 'GET_VRING_BASE', STATE_SIZE, stateOf),
  form(VHOST_USER_SET_VRING_KICK, 'SET_VRING_KICK', 8, vringFd, RING_FD),
  form(VHOST_USER_SET_VRING_CALL, 'SET_VRING_CALL', 8, vringFd, RING_FD),
  form(VHOST_USER_SET_VRING_ERR, 'SET_VRING_ERR', 8, vringFd, RING_FD),
  form(VHOST_USER_SET_VRING_ENABLE, 'SET_VRING_ENABLE', STATE_SIZE, vringEnable),
  form(VHOST_USER_VRING_KICK, 'VRING_KICK', STATE_SIZE, vringKick, {
    feature: VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  }),
  form(VHOST_USER_GET_QUEUE_NUM, 'GET_QUEUE_NUM', 0, nothing),
  form(VHOST_USER_SEND_RARP, 'SEND_RARP', 8, (body) => ({ mac: new Uint8Array(body.buffer, body.byteOffset, 6) })),
  form(VHOST_USER_NET_SET_MTU, 'NET_SET_MTU', 8, (body) => ({ mtu: u64At(body, 0) })),
  form(VHOST_USER_SET_BACKEND_REQ_FD, 'SET_BACKEND_REQ_FD', [0, 8], (_body, [fd]) => ({ fd: fd! }), { fds: ONE_FD }),
  form(VHOST_USER_GET_CONFIG, 'GET_CONFIG', CONFIG_SIZE, getConfig),
  form(VHOST_USER_SET_CONFIG, 'SET_CONFIG', CONFIG_SIZE, setConfig),
  form(VHOST_USER_SET_STATUS, 'SET_STATUS', 8, (body) => ({ status: u64At(body, 0) })),
  form(VHOST_USER_GET_STATUS, 'GET_STATUS', 0, nothing),
  form(
    VHOST_USER_SET_DEVICE_STATE_FD,
    'SET_DEVICE_STATE_FD',
    VHOST_USER_DEVICE_STATE.sizeBytes,
    (body) => ({
      direction: u32At(body, VHOST_USER_DEVICE_STATE.direction),
      phase: u32At(body, VHOST_USER_DEVICE_STATE.phase),
    }),
    // The front-end's channel is not used: the answer carries another one.
    { fds: ONE_FD, feature: DEVICE_STATE },
  ),
  form(VHOST_USER_CHECK_DEVICE_STATE, 'CHECK_DEVICE_STATE', 0, nothing, { feature: DEVICE_STATE }),
  form(VHOST_USER_RESET_DEVICE, 'RESET_DEVICE', 0, nothing),
])

/**
 * Decodes a message. `fds` are its descriptors, `protocolFeatures` those negotiated. Byte fields are valid until the
 * next message.
 * @throws ProtocolError if the descriptors do not match the message
 */
export const decode = ({ request, body }: Message, fds: readonly OwnedFd[], protocolFeatures: bigint): Decoded => {
  const found = forms.get(request)
  const name = found?.name ?? `request ${request}`
  const [fdsMin, fdsMax] = found?.fds ?? [0, 0]
  if (fds.length < fdsMin || fds.length > fdsMax) throw new ProtocolError(`${name} with ${fds.length} descriptors`)
  if (found === undefined) return { name, refusal: 'unknown' }
  if (found.feature !== null && !hasFeature(protocolFeatures, found.feature))
    return { name, refusal: 'its protocol feature was not negotiated' }
  const [min, max] = typeof found.size === 'number' ? [found.size, found.size] : found.size
  if (body.byteLength < min || body.byteLength > max) return { name, refusal: `${body.byteLength} bytes` }
  const fields = found.decode(body, fds)
  return typeof fields === 'string' ? { name, refusal: fields } : { name: found.name, fields }
}
