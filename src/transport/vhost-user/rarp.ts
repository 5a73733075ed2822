/** Minimum Ethernet frame without FCS, bytes. */
const FRAME_BYTES = 60
const ETH_P_RARP = [0x80, 0x35]
/** Hardware type Ethernet, protocol type IPv4, their address lengths, operation 3 "request reverse". RFC 903. */
const REQUEST_REVERSE = [0, 1, 8, 0, 6, 4, 0, 3]

/** A broadcast reverse ARP request of `mac` (six bytes) for its own address: switches learn the new port from it. */
export const rarpFrame = (mac: Uint8Array): Uint8Array => {
  const frame = new Uint8Array(FRAME_BYTES)
  frame.fill(0xff, 0, 6)
  frame.set(mac, 6)
  frame.set([...ETH_P_RARP, ...REQUEST_REVERSE], 12)
  frame.set(mac, 22)
  frame.set(mac, 32)
  return frame
}
