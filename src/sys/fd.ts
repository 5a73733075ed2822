import { constants } from 'node:fs'
import { constants as osConstants } from 'node:os'
import { assert } from '../base/assert.ts'
import { check, cString, native } from './native.ts'

const { EBADF } = osConstants.errno
/** asm-generic/fcntl.h, the same on x86-64 and arm64; missing in node:fs. */
const O_CLOEXEC = 0o2000000

/** A file descriptor with one owner, who disposes of it. */
export class OwnedFd {
  #fd: number
  readonly #close: (fd: number) => number

  /** Takes over `fd`, which is open, to be closed by `close`. */
  constructor(fd: number, close: (fd: number) => number = native.vn_close) {
    assert(fd >= 0, 'no file descriptor')
    this.#fd = fd
    this.#close = close
  }

  /** The descriptor's number, for calls. */
  get fd(): number {
    assert(this.#fd >= 0, 'the file descriptor is closed')
    return this.#fd
  }

  get isOpen(): boolean {
    return this.#fd >= 0
  }

  /** Hands the descriptor to a new owner: a Worker, or the TAP's user. */
  release(): number {
    const fd = this.fd
    this.#fd = -1
    return fd
  }

  /** Closes the descriptor; does nothing the second time. */
  [Symbol.dispose](): void {
    if (this.#fd < 0) return
    const result = this.#close(this.#fd)
    this.#fd = -1
    // After any other error (EIO, ENOSPC) the descriptor is closed too, and none of our files has data to lose.
    assert(result !== -EBADF, 'the file descriptor was closed elsewhere')
  }
}

/** Opens `path` with O_CLOEXEC and `flags` (`node:fs` constants). Returns the fd or -errno. */
export const openRaw = (path: string, flags: number): number => native.vn_open(cString(path), flags | O_CLOEXEC)

/** Opens `path` with O_CLOEXEC and `flags` (`node:fs` constants). Throws SysError. */
export const open = (path: string, flags: number = constants.O_RDWR): OwnedFd =>
  new OwnedFd(check(`open ${path}`, openRaw(path, flags)))
