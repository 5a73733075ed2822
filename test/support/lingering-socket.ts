import { dlopen } from 'bun:ffi'
import { constants } from 'node:os'
import { OwnedFd } from '../../src/sys/fd.ts'
import { check, native } from '../../src/sys/native.ts'

/** linux/socket.h, asm-generic/socket.h. */
const AF_INET = 2
const SOCK_STREAM = 1
const SOL_SOCKET = 1
const SO_LINGER = 13
const SOCKADDR_BYTES = 16

const libc = dlopen('libc.so.6', {
  setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
  getsockname: { args: ['i32', 'ptr', 'ptr'], returns: 'i32' },
})

/**
 * A TCP socket whose last close(2) waits for `seconds`: it has sent more than its other end, which nobody reads, has
 * room for.
 */
export class LingeringSocket implements Disposable {
  readonly socket: OwnedFd
  readonly #unread: OwnedFd

  constructor(seconds: number) {
    using listener = new OwnedFd(check('socket', native.vn_socket(AF_INET, SOCK_STREAM, 0)))
    const address = new Uint8Array(SOCKADDR_BYTES)
    address.set([AF_INET, 0, 0, 0, 127, 0, 0, 1])
    check('bind', native.vn_bind(listener.fd, address, SOCKADDR_BYTES))
    check('listen', native.vn_listen(listener.fd, 1))
    check('getsockname', libc.symbols.getsockname(listener.fd, address, new Uint32Array([SOCKADDR_BYTES])))
    this.socket = new OwnedFd(check('socket', native.vn_socket(AF_INET, SOCK_STREAM, 0)))
    check('connect', native.vn_connect(this.socket.fd, address, SOCKADDR_BYTES))
    this.#unread = new OwnedFd(check('accept', native.vn_accept(listener.fd)))
    check('fcntl', native.vn_set_nonblock(this.socket.fd, 1))
    const bytes = new Uint8Array(1 << 16)
    let written = 0
    while (written >= 0) written = native.vn_write(this.socket.fd, bytes, bytes.length)
    if (written !== -constants.errno.EAGAIN) throw new Error(`write: ${written}`)
    const linger = new Int32Array([1, seconds])
    check('SO_LINGER', libc.symbols.setsockopt(this.socket.fd, SOL_SOCKET, SO_LINGER, linger, linger.byteLength))
  }

  /** Ends what waits for it to be closed. */
  [Symbol.dispose](): void {
    this.#unread[Symbol.dispose]()
    this.socket[Symbol.dispose]()
  }
}
