/**
 * The kernel's VDUSE interface: linux/vduse.h of Linux 7.3, with API versions 0 and 1. Names are the header's. All
 * numbers are little-endian like the host.
 */
import { array, i32, struct, u8, u16, u32, u64, union } from './layout.ts'

const _IOC_WRITE = 1
const _IOC_READ = 2
/** asm-generic/ioctl.h, the same on x86-64 and arm64. */
const ioc = (direction: number, number: number, sizeBytes: number): number =>
  ((direction << 30) | (sizeBytes << 16) | (0x81 << 8) | number) >>> 0

/** Version 1 adds virtqueue groups and address spaces. */
export const VDUSE_API_VERSION = 0
export const VDUSE_API_VERSION_1 = 1

/** Bit numbers of VDUSE_SET_FEATURES (not of virtio): messages for a virtqueue that becomes ready, and for suspend. */
export const VDUSE_F_QUEUE_READY = 0
export const VDUSE_F_SUSPEND = 1

/** Bytes of a name, NUL included. */
export const VDUSE_NAME_MAX = 256

/** Argument of VDUSE_CREATE_DEV; the configuration space follows at `config`. */
export const VDUSE_DEV_CONFIG = struct('vduse_dev_config', {
  name: array(u8, VDUSE_NAME_MAX),
  vendor_id: u32,
  device_id: u32,
  features: u64,
  vq_num: u32,
  vq_align: u32,
  /** Only for API version 1; zero before. */
  ngroups: u32,
  nas: u32,
  reserved: array(u32, 11),
  config_size: u32,
  config: array(u8, 0),
})

export const VDUSE_IOTLB_ENTRY = struct('vduse_iotlb_entry', { offset: u64, start: u64, last: u64, perm: u8 })

/** API version 1. */
export const VDUSE_IOTLB_ENTRY_V2 = struct('vduse_iotlb_entry_v2', {
  offset: u64,
  start: u64,
  last: u64,
  perm: u8,
  padding: array(u8, 7),
  asid: u32,
  reserved: array(u32, 11),
})

/** Values of `perm`. */
export const VDUSE_ACCESS_RO = 1
export const VDUSE_ACCESS_WO = 2
export const VDUSE_ACCESS_RW = 3

/** The bytes follow at `buffer`. */
export const VDUSE_CONFIG_DATA = struct('vduse_config_data', { offset: u32, length: u32, buffer: array(u8, 0) })

export const VDUSE_VQ_CONFIG = struct('vduse_vq_config', {
  index: u32,
  max_size: u16,
  reserved1: u16,
  /** Only for API version 1; zero before. */
  group: u32,
  reserved2: array(u16, 10),
})

const VDUSE_VQ_STATE_SPLIT = struct('vduse_vq_state_split', { avail_index: u16 })

const VDUSE_VQ_STATE_PACKED = struct('vduse_vq_state_packed', {
  last_avail_counter: u16,
  last_avail_idx: u16,
  last_used_counter: u16,
  last_used_idx: u16,
})

/** The anonymous union in struct vduse_vq_info and struct vduse_vq_state. */
const state = union({ split: VDUSE_VQ_STATE_SPLIT.asField, packed: VDUSE_VQ_STATE_PACKED.asField })

export const VDUSE_VQ_INFO = struct('vduse_vq_info', {
  index: u32,
  num: u32,
  desc_addr: u64,
  driver_addr: u64,
  device_addr: u64,
  state,
  ready: u8,
})

export const VDUSE_VQ_EVENTFD = struct('vduse_vq_eventfd', { index: u32, fd: i32 })
export const VDUSE_EVENTFD_DEASSIGN = -1

/** On /dev/vduse/control. */
export const VDUSE_GET_API_VERSION = ioc(_IOC_READ, 0x00, 8)
export const VDUSE_SET_API_VERSION = ioc(_IOC_WRITE, 0x01, 8)
export const VDUSE_CREATE_DEV = ioc(_IOC_WRITE, 0x02, VDUSE_DEV_CONFIG.sizeBytes)
/** The kernel reads VDUSE_NAME_MAX bytes, however short the name. */
export const VDUSE_DESTROY_DEV = ioc(_IOC_WRITE, 0x03, VDUSE_NAME_MAX)
export const VDUSE_GET_FEATURES = ioc(_IOC_READ, 0x04, 8)
export const VDUSE_SET_FEATURES = ioc(_IOC_WRITE, 0x05, 8)

/** On /dev/vduse/NAME. */
export const VDUSE_IOTLB_GET_FD = ioc(_IOC_READ | _IOC_WRITE, 0x10, VDUSE_IOTLB_ENTRY.sizeBytes)
export const VDUSE_DEV_GET_FEATURES = ioc(_IOC_READ, 0x11, 8)
export const VDUSE_DEV_SET_CONFIG = ioc(_IOC_WRITE, 0x12, VDUSE_CONFIG_DATA.sizeBytes)
export const VDUSE_DEV_INJECT_CONFIG_IRQ = ioc(0, 0x13, 0)
export const VDUSE_VQ_SETUP = ioc(_IOC_WRITE, 0x14, VDUSE_VQ_CONFIG.sizeBytes)
export const VDUSE_VQ_GET_INFO = ioc(_IOC_READ | _IOC_WRITE, 0x15, VDUSE_VQ_INFO.sizeBytes)
export const VDUSE_VQ_SETUP_KICKFD = ioc(_IOC_WRITE, 0x16, VDUSE_VQ_EVENTFD.sizeBytes)
export const VDUSE_VQ_INJECT_IRQ = ioc(_IOC_WRITE, 0x17, 4)
export const VDUSE_IOTLB_GET_FD2 = ioc(_IOC_READ | _IOC_WRITE, 0x1b, VDUSE_IOTLB_ENTRY_V2.sizeBytes)

/** `enum vduse_req_type`. */
export const VDUSE_GET_VQ_STATE = 0
export const VDUSE_SET_STATUS = 1
export const VDUSE_UPDATE_IOTLB = 2
/** API version 1. */
export const VDUSE_SET_VQ_GROUP_ASID = 3
/** With VDUSE_F_QUEUE_READY. */
export const VDUSE_SET_VQ_READY = 4
/** With VDUSE_F_SUSPEND. */
export const VDUSE_SUSPEND = 5

const VDUSE_VQ_STATE = struct('vduse_vq_state', { index: u32, state })
const VDUSE_DEV_STATUS = struct('vduse_dev_status', { status: u8 })
const VDUSE_IOVA_RANGE = struct('vduse_iova_range', { start: u64, last: u64 })
const VDUSE_IOVA_RANGE_V2 = struct('vduse_iova_range_v2', { start: u64, last: u64, asid: u32, padding: u32 })
const VDUSE_VQ_GROUP_ASID = struct('vduse_vq_group_asid', { group: u32, asid: u32 })
const VDUSE_VQ_READY = struct('vduse_vq_ready', { num: u32, ready: u32 })

/** A message read from /dev/vduse/NAME; `type` selects the union's member. */
export const VDUSE_DEV_REQUEST = struct('vduse_dev_request', {
  type: u32,
  request_id: u32,
  reserved: array(u32, 4),
  body: union({
    vq_state: VDUSE_VQ_STATE.asField,
    s: VDUSE_DEV_STATUS.asField,
    iova: VDUSE_IOVA_RANGE.asField,
    iova_v2: VDUSE_IOVA_RANGE_V2.asField,
    vq_group_asid: VDUSE_VQ_GROUP_ASID.asField,
    vq_ready: VDUSE_VQ_READY.asField,
    padding: array(u32, 32),
  }),
})

/** An answer written to /dev/vduse/NAME: one for each request, with its request_id. */
export const VDUSE_DEV_RESPONSE = struct('vduse_dev_response', {
  request_id: u32,
  result: u32,
  reserved: array(u32, 4),
  body: union({ vq_state: VDUSE_VQ_STATE.asField, padding: array(u32, 32) }),
})

/** Values of `result`. */
export const VDUSE_REQ_RESULT_OK = 0
export const VDUSE_REQ_RESULT_FAILED = 1
