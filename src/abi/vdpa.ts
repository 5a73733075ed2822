/** The vdpa management family of generic netlink: linux/vdpa.h. Names are the header's. */

export const VDPA_GENL_NAME = 'vdpa'
export const VDPA_GENL_VERSION = 1

export const VDPA_CMD_MGMTDEV_GET = 2
export const VDPA_CMD_DEV_NEW = 3
export const VDPA_CMD_DEV_DEL = 4
export const VDPA_CMD_DEV_GET = 5
export const VDPA_CMD_DEV_CONFIG_GET = 6

/** NUL-terminated strings. */
export const VDPA_ATTR_MGMTDEV_BUS_NAME = 1
export const VDPA_ATTR_MGMTDEV_DEV_NAME = 2
/** u64: bit N is set for virtio device id N. */
export const VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES = 3
/** NUL-terminated string. */
export const VDPA_ATTR_DEV_NAME = 4
/** u32. */
export const VDPA_ATTR_DEV_ID = 5
/** u32. */
export const VDPA_ATTR_DEV_VENDOR_ID = 6
/** u32. */
export const VDPA_ATTR_DEV_MAX_VQS = 7
/** u16. */
export const VDPA_ATTR_DEV_MAX_VQ_SIZE = 8
/** Six bytes. */
export const VDPA_ATTR_DEV_NET_CFG_MACADDR = 10
/** u16 in fact: the status field of the configuration space. */
export const VDPA_ATTR_DEV_NET_STATUS = 11
/** u16. */
export const VDPA_ATTR_DEV_NET_CFG_MAX_VQP = 12
/** u16. */
export const VDPA_ATTR_DEV_NET_CFG_MTU = 13
/** u64; there once the driver has set FEATURES_OK. */
export const VDPA_ATTR_DEV_NEGOTIATED_FEATURES = 14
/** u32. */
export const VDPA_ATTR_DEV_MGMTDEV_MAX_VQS = 15
/** u64. */
export const VDPA_ATTR_DEV_SUPPORTED_FEATURES = 16
/** u64. */
export const VDPA_ATTR_DEV_FEATURES = 20
