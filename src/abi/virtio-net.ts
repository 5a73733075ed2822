/** The net device's configuration space and packet header: linux/virtio_net.h. VIRTIO 1.2 §5.1.4, §5.1.6. */
import { array, packedStruct, struct, u8, u16, u32 } from './layout.ts'

/** `struct virtio_net_config`. VIRTIO 1.2 §5.1.4. */
export const VIRTIO_NET_CONFIG = packedStruct('virtio_net_config', {
  mac: array(u8, 6),
  status: u16,
  max_virtqueue_pairs: u16,
  mtu: u16,
  speed: u32,
  duplex: u8,
  rss_max_key_size: u8,
  rss_max_indirection_table_length: u16,
  supported_hash_types: u32,
})

/** Bits of `status`. */
export const VIRTIO_NET_S_LINK_UP = 1
export const VIRTIO_NET_S_ANNOUNCE = 2

/** `struct virtio_net_hdr`: the header of a driver without VERSION_1 and MRG_RXBUF. VIRTIO 1.2 §5.1.6.1. */
export const VIRTIO_NET_HDR = struct('virtio_net_hdr', {
  flags: u8,
  gso_type: u8,
  hdr_len: u16,
  gso_size: u16,
  csum_start: u16,
  csum_offset: u16,
})

/** `struct virtio_net_hdr_v1`, in front of every frame of a VERSION_1 device. VIRTIO 1.2 §5.1.6. */
export const VIRTIO_NET_HDR_V1 = struct('virtio_net_hdr_v1', {
  flags: u8,
  gso_type: u8,
  hdr_len: u16,
  gso_size: u16,
  csum_start: u16,
  csum_offset: u16,
  num_buffers: u16,
})

/** `struct virtio_net_hdr_v1_hash`: the same where VIRTIO_NET_F_HASH_REPORT was negotiated. */
export const VIRTIO_NET_HDR_V1_HASH = struct('virtio_net_hdr_v1_hash', {
  hdr: VIRTIO_NET_HDR_V1.asField,
  hash_value: u32,
  hash_report: u16,
  padding: u16,
})

/** Bits of `flags`. */
export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
export const VIRTIO_NET_HDR_F_DATA_VALID = 2
export const VIRTIO_NET_HDR_F_RSC_INFO = 4

/** Values of `gso_type`, and the bit that may come with them. */
export const VIRTIO_NET_HDR_GSO_NONE = 0
export const VIRTIO_NET_HDR_GSO_TCPV4 = 1
export const VIRTIO_NET_HDR_GSO_UDP = 3
export const VIRTIO_NET_HDR_GSO_TCPV6 = 4
export const VIRTIO_NET_HDR_GSO_UDP_L4 = 5
export const VIRTIO_NET_HDR_GSO_ECN = 0x80

/** Answers of the control queue. VIRTIO 1.2 §5.1.6.5. */
export const VIRTIO_NET_OK = 0
export const VIRTIO_NET_ERR = 1

/** Classes of commands, each followed by its commands. VIRTIO 1.2 §5.1.6.5.1: receive modes. */
export const VIRTIO_NET_CTRL_RX = 0
export const VIRTIO_NET_CTRL_RX_PROMISC = 0
export const VIRTIO_NET_CTRL_RX_ALLMULTI = 1
export const VIRTIO_NET_CTRL_RX_ALLUNI = 2
export const VIRTIO_NET_CTRL_RX_NOMULTI = 3
export const VIRTIO_NET_CTRL_RX_NOUNI = 4
export const VIRTIO_NET_CTRL_RX_NOBCAST = 5

/** VIRTIO 1.2 §5.1.6.5.2. */
export const VIRTIO_NET_CTRL_MAC = 1
export const VIRTIO_NET_CTRL_MAC_TABLE_SET = 0
export const VIRTIO_NET_CTRL_MAC_ADDR_SET = 1

/** VIRTIO 1.2 §5.1.6.5.3. */
export const VIRTIO_NET_CTRL_VLAN = 2
export const VIRTIO_NET_CTRL_VLAN_ADD = 0
export const VIRTIO_NET_CTRL_VLAN_DEL = 1

/** VIRTIO 1.2 §5.1.6.5.4. */
export const VIRTIO_NET_CTRL_ANNOUNCE = 3
export const VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0

/** VIRTIO 1.2 §5.1.6.5.5. */
export const VIRTIO_NET_CTRL_MQ = 4
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN = 1
/** VIRTIO 1.2 §5.1.6.5.7.1. */
export const VIRTIO_NET_CTRL_MQ_RSS_CONFIG = 1
/** VIRTIO 1.2 §5.1.6.5.6.4. */
export const VIRTIO_NET_CTRL_MQ_HASH_CONFIG = 2

/** What of a packet is hashed, as bits of `hash_types`. VIRTIO 1.2 §5.1.6.4.3.1. */
export const VIRTIO_NET_RSS_HASH_TYPE_IPv4 = 1 << 0
export const VIRTIO_NET_RSS_HASH_TYPE_TCPv4 = 1 << 1
export const VIRTIO_NET_RSS_HASH_TYPE_UDPv4 = 1 << 2
export const VIRTIO_NET_RSS_HASH_TYPE_IPv6 = 1 << 3
export const VIRTIO_NET_RSS_HASH_TYPE_TCPv6 = 1 << 4
export const VIRTIO_NET_RSS_HASH_TYPE_UDPv6 = 1 << 5

/** VIRTIO 1.2 §5.1.6.5.8. */
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0

/** VIRTIO 1.3 §5.1.6.5.9. */
export const VIRTIO_NET_CTRL_NOTF_COAL = 6
export const VIRTIO_NET_CTRL_NOTF_COAL_TX_SET = 0
export const VIRTIO_NET_CTRL_NOTF_COAL_RX_SET = 1
