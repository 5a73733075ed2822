import { constants } from 'node:os'
import { POLLFD, POLLIN } from '../../src/abi/linux.ts'
import { OwnedFd } from '../../src/sys/fd.ts'
import { check, native } from '../../src/sys/native.ts'
import { withNetns } from '../../src/sys/netns.ts'
import { concat, encodeHeader, type Header } from './frames.ts'
import { HANG_MS } from './patience.ts'

/** linux/if_packet.h, linux/if_ether.h. */
const AF_PACKET = 17
const SOCK_RAW_NONBLOCK = 3 | 0o4000
const ETH_P_ALL = 0x0003
const bigEndian16 = (value: number): number => ((value & 0xff) << 8) | (value >> 8)
const SOCKADDR_LL_BYTES = 20
const SOL_PACKET = 263
const PACKET_VNET_HDR = 15
/** Of a `struct virtio_net_hdr`, without num_buffers. */
const PACKET_HEADER_BYTES = 10

/** For experiments (RFC 5342): nobody else in a namespace sends it. */
const ETHERTYPE = 0x88b5

/** A frame that only these tests send, told apart by a number. `bytes` is its whole length. */
export const testFrame = (number: number, bytes = 64): Uint8Array => {
  const frame = new Uint8Array(bytes)
  frame.set([0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2])
  const view = new DataView(frame.buffer)
  view.setUint16(12, ETHERTYPE)
  view.setUint32(14, number)
  for (let i = 18; i < bytes; i++) frame[i] = (i * 31 + number) & 0xff
  return frame
}

/** The number of a test's frame, or null. */
export const numberOf = (frame: Uint8Array): number | null => {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength)
  return frame.length >= 18 && view.getUint16(12) === ETHERTYPE ? view.getUint32(14) : null
}

/** Whoever sits on the other side of an interface: reads what it brings, sends through it. */
export class PacketSocket {
  readonly #fd: OwnedFd
  readonly #buffer = new Uint8Array(70_000)
  /** Numbers of frames sent here, which the socket receives as well. */
  readonly #sent = new Set<number>()

  /** `namespace`: where the interface is; null for here. `offloads`: frames are sent with {@link sendOffloaded}. */
  constructor(namespace: string | null, ifname: string, options: { readonly offloads?: boolean } = {}) {
    const newSocket = (): number =>
      check('socket', native.vn_socket(AF_PACKET, SOCK_RAW_NONBLOCK, bigEndian16(ETH_P_ALL)))
    const index = interfaceIndex(namespace, ifname)
    const fd = namespace === null ? newSocket() : withNetns(namespace, newSocket)
    this.#fd = new OwnedFd(fd)
    if (options.offloads === true) {
      check('PACKET_VNET_HDR', native.vn_setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, 1))
    }
    const address = new DataView(new ArrayBuffer(SOCKADDR_LL_BYTES))
    address.setUint16(0, AF_PACKET, true)
    address.setUint16(2, ETH_P_ALL)
    address.setInt32(4, index, true)
    check('bind', native.vn_bind(fd, new Uint8Array(address.buffer), SOCKADDR_LL_BYTES))
  }

  send(frame: Uint8Array): void {
    const number = numberOf(frame)
    if (number !== null) this.#sent.add(number)
    check('write', native.vn_write(this.#fd.fd, frame, frame.length))
  }

  /** A frame that the kernel is to complete: the header says how. */
  sendOffloaded(header: Partial<Header>, frame: Uint8Array): void {
    const bytes = concat(encodeHeader(header).subarray(0, PACKET_HEADER_BYTES), frame)
    check('write', native.vn_write(this.#fd.fd, bytes, bytes.length))
  }

  /** The next frame of a test that came from the card, or null if none comes in time. */
  receive(timeoutMs = HANG_MS): Uint8Array | null {
    return this.receiveAny((frame) => {
      const number = numberOf(frame)
      return number !== null && !this.#sent.has(number)
    }, timeoutMs)
  }

  /** The next frame that fits, or null if none comes in time. */
  receiveAny(fits: (frame: Uint8Array) => boolean, timeoutMs = HANG_MS): Uint8Array | null {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const bytes = native.vn_read(this.#fd.fd, this.#buffer, this.#buffer.length)
      if (bytes === -constants.errno.EAGAIN) {
        const left = deadline - performance.now()
        if (left <= 0) return null
        const request = new Int32Array(POLLFD.sizeBytes / 4)
        request[0] = this.#fd.fd
        request[1] = POLLIN
        check('poll', native.vn_poll(request, 1, Math.ceil(left)))
        continue
      }
      const frame = this.#buffer.slice(0, check('read', bytes))
      if (fits(frame)) return frame
    }
  }

  /** Discards what has arrived. */
  drain(): void {
    while (this.receive(0) !== null);
  }

  [Symbol.dispose](): void {
    this.#fd[Symbol.dispose]()
  }
}

const interfaceIndex = (namespace: string | null, ifname: string): number => {
  const there = namespace === null ? [] : ['-n', namespace]
  const { stdout } = Bun.spawnSync(['ip', ...there, '-json', 'link', 'show', ifname])
  return (JSON.parse(stdout.toString()) as { ifindex: number }[])[0]!.ifindex
}
