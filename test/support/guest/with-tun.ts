/**
 * `bun with-tun.js NAME KIND COMMAND...`: becomes the command, with descriptor 3 attached to the interface NAME, which
 * is made if there is none. KIND: flags of {@link FLAGS} with commas in between, or `unattached` for a descriptor of
 * /dev/net/tun without an interface.
 */
import { dlopen, FFIType, ptr } from 'bun:ffi'
import { constants } from 'node:fs'
import { IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR, IFREQ, TUNSETIFF } from '../../../src/abi/tun.ts'

const FLAGS: Readonly<Record<string, number>> = {
  tun: IFF_TUN | IFF_NO_PI,
  tap: IFF_TAP | IFF_NO_PI,
  pi: IFF_TAP,
  vnet_hdr: IFF_VNET_HDR,
  multi_queue: IFF_MULTI_QUEUE,
}

const { symbols: libc } = dlopen('libc.so.6', {
  open: { args: [FFIType.cstring, FFIType.i32], returns: FFIType.i32 },
  ioctl: { args: [FFIType.i32, FFIType.u64, FFIType.ptr], returns: FFIType.i32 },
  dup2: { args: [FFIType.i32, FFIType.i32], returns: FFIType.i32 },
  execvp: { args: [FFIType.cstring, FFIType.ptr], returns: FFIType.i32 },
})

const HANDED_FD = 3
const [name = '', kind = '', ...command] = process.argv.slice(2)
const text = (word: string): Buffer => Buffer.from(`${word}\0`)

const fd = libc.open(text('/dev/net/tun'), constants.O_RDWR)
if (fd < 0) throw new Error('/dev/net/tun cannot be opened')
if (kind !== 'unattached') {
  const request = new Uint8Array(IFREQ.sizeBytes)
  request.set(text(name), IFREQ.ifr_name)
  const flags = kind.split(',').reduce((sum, flag) => sum | FLAGS[flag]!, 0)
  new DataView(request.buffer).setUint16(IFREQ.ifr_flags, flags, true)
  if (libc.ioctl(fd, TUNSETIFF, request) < 0) throw new Error(`${name}: TUNSETIFF ${kind} failed`)
}

const words = command.map(text)
const list = BigUint64Array.from([...words.map((word) => BigInt(ptr(word))), 0n])
// Last: from here on the runtime has lost what it had at that number.
libc.dup2(fd, HANDED_FD)
libc.execvp(words[0]!, list)
