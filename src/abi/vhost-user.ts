/**
 * The vhost-user protocol: QEMU's docs/interop/vhost-user.rst. There is no kernel header for it; names are the
 * document's. All numbers are little-endian like the host.
 */
import { array, struct, u8, u16, u32, u64 } from './layout.ts'

/** Every message's header; `size` bytes of body follow. */
export const VHOST_USER_HEADER = struct('vhost_user_header', { request: u32, flags: u32, size: u32 })

export const VHOST_USER_VERSION = 1
export const VHOST_USER_VERSION_MASK = 0x3
export const VHOST_USER_REPLY = 0x4
export const VHOST_USER_NEED_REPLY = 0x8

/** Bit number among the virtio features: the protocol's own features can be negotiated. */
export const VHOST_USER_F_PROTOCOL_FEATURES = 30
/** Bit number: the back-end logs the pages that it writes (linux/vhost.h). */
export const VHOST_F_LOG_ALL = 26

/** Bit numbers of the protocol's own features. */
export const VHOST_USER_PROTOCOL_F_MQ = 0
export const VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1
export const VHOST_USER_PROTOCOL_F_RARP = 2
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 3
export const VHOST_USER_PROTOCOL_F_MTU = 4
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5
export const VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6
export const VHOST_USER_PROTOCOL_F_CONFIG = 9
export const VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10
export const VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12
export const VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13
export const VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14
export const VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15
export const VHOST_USER_PROTOCOL_F_STATUS = 16
export const VHOST_USER_PROTOCOL_F_DEVICE_STATE = 19

/** Requests of the front-end. */
export const VHOST_USER_GET_FEATURES = 1
export const VHOST_USER_SET_FEATURES = 2
export const VHOST_USER_SET_OWNER = 3
export const VHOST_USER_RESET_OWNER = 4
export const VHOST_USER_SET_MEM_TABLE = 5
export const VHOST_USER_SET_LOG_BASE = 6
export const VHOST_USER_SET_LOG_FD = 7
export const VHOST_USER_SET_VRING_NUM = 8
export const VHOST_USER_SET_VRING_ADDR = 9
export const VHOST_USER_SET_VRING_BASE = 10
export const VHOST_USER_GET_VRING_BASE = 11
export const VHOST_USER_SET_VRING_KICK = 12
export const VHOST_USER_SET_VRING_CALL = 13
export const VHOST_USER_SET_VRING_ERR = 14
export const VHOST_USER_GET_PROTOCOL_FEATURES = 15
export const VHOST_USER_SET_PROTOCOL_FEATURES = 16
export const VHOST_USER_GET_QUEUE_NUM = 17
export const VHOST_USER_SET_VRING_ENABLE = 18
export const VHOST_USER_SEND_RARP = 19
export const VHOST_USER_NET_SET_MTU = 20
export const VHOST_USER_SET_BACKEND_REQ_FD = 21
export const VHOST_USER_GET_CONFIG = 24
export const VHOST_USER_SET_CONFIG = 25
export const VHOST_USER_GET_INFLIGHT_FD = 31
export const VHOST_USER_SET_INFLIGHT_FD = 32
export const VHOST_USER_RESET_DEVICE = 34
export const VHOST_USER_VRING_KICK = 35
export const VHOST_USER_GET_MAX_MEM_SLOTS = 36
export const VHOST_USER_ADD_MEM_REG = 37
export const VHOST_USER_REM_MEM_REG = 38
export const VHOST_USER_SET_STATUS = 39
export const VHOST_USER_GET_STATUS = 40
export const VHOST_USER_SET_DEVICE_STATE_FD = 42
export const VHOST_USER_CHECK_DEVICE_STATE = 43

/** Requests of the back-end, on the connection that SET_BACKEND_REQ_FD gives it. */
export const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2
export const VHOST_USER_BACKEND_VRING_CALL = 4
export const VHOST_USER_BACKEND_VRING_ERR = 5

/** Body of the requests about one ring and a number. */
export const VHOST_VRING_STATE = struct('vhost_vring_state', { index: u32, num: u32 })

/** Addresses are the front-end's virtual addresses, except `log`, a guest physical address. */
export const VHOST_VRING_ADDR = struct('vhost_vring_addr', {
  index: u32,
  flags: u32,
  descriptor: u64,
  used: u64,
  available: u64,
  log: u64,
})
/** Bit number in `flags`: writes to the used ring are logged. */
export const VHOST_VRING_F_LOG = 0

/** Body of SET_VRING_KICK, CALL and ERR: the ring's index, and whether there is a descriptor. */
export const VHOST_USER_VRING_IDX_MASK = 0xff
export const VHOST_USER_VRING_NOFD_MASK = 0x100

export const VHOST_USER_MEMORY_REGION = struct('vhost_user_memory_region', {
  guest_phys_addr: u64,
  memory_size: u64,
  userspace_addr: u64,
  mmap_offset: u64,
})
/** SET_MEM_TABLE: regions follow. */
export const VHOST_USER_MEMORY = struct('vhost_user_memory', { nregions: u32, padding: u32, regions: array(u8, 0) })
/** Most regions of one SET_MEM_TABLE. */
export const VHOST_MEMORY_BASELINE_NREGIONS = 8
/** ADD_MEM_REG and REM_MEM_REG. */
export const VHOST_USER_MEM_REG_MSG = struct('vhost_user_mem_reg_msg', {
  padding: u64,
  region: VHOST_USER_MEMORY_REGION.asField,
})

export const VHOST_USER_LOG = struct('vhost_user_log', { mmap_size: u64, mmap_offset: u64 })
/** Bytes of guest memory for one bit of the log. */
export const VHOST_LOG_PAGE = 4096

/** GET_CONFIG and SET_CONFIG: the bytes follow. */
export const VHOST_USER_CONFIG = struct('vhost_user_config', {
  offset: u32,
  size: u32,
  flags: u32,
  payload: array(u8, 0),
})

export const VHOST_USER_INFLIGHT = struct('vhost_user_inflight', {
  mmap_size: u64,
  mmap_offset: u64,
  num_queues: u16,
  queue_size: u16,
})

/** SET_DEVICE_STATE_FD. */
export const VHOST_USER_DEVICE_STATE = struct('vhost_user_transfer_device_state', { direction: u32, phase: u32 })
/** SAVE: from the back-end, on the source. LOAD: to the back-end, on the destination. */
export const VHOST_TRANSFER_STATE_DIRECTION_SAVE = 0
export const VHOST_TRANSFER_STATE_DIRECTION_LOAD = 1
/** The only phase: guest and rings are stopped. */
export const VHOST_TRANSFER_STATE_PHASE_STOPPED = 0
