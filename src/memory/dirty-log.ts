import { VHOST_LOG_PAGE } from '../abi/vhost-user.ts'
import type { AddressSpace } from './address-space.ts'
import type { IovecArena } from './iovec-arena.ts'
import type { Mapping } from './region.ts'
import { LogView } from './ring-view.ts'

/**
 * One bit for each page of the driver's memory that the device has written, for a front-end that migrates its guest:
 * docs/interop/vhost-user.rst, "Migration". The front-end clears bits concurrently, then reads the page. So a bit is
 * set after the write to the page, even if it was set already.
 */
export class DirtyLog {
  readonly #space: AddressSpace
  readonly #mapping: Mapping
  readonly #view: LogView

  /** Takes over `mapping`, which holds the log. */
  constructor(space: AddressSpace, mapping: Mapping) {
    this.#space = space
    this.#mapping = mapping
    this.#view = new LogView(mapping)
  }

  /** Marks the pages of [address, address + length) as written. Pages beyond the log are ignored. */
  mark(address: number, length: number): void {
    const bits = this.#view.bytes
    const last = Math.min(Math.floor((address + length - 1) / VHOST_LOG_PAGE), bits.length * 8 - 1)
    for (let page = Math.floor(address / VHOST_LOG_PAGE); page <= last; page++) {
      // ORDERING: a full barrier between the writes to the page and the bit.
      Atomics.or(bits, Math.floor(page / 8), 1 << (page % 8))
    }
  }

  /** Marks the first `bytes` bytes of an arena's chain, after its first `readable` iovecs, as written. */
  markChain(arena: IovecArena, chain: number, bytes: number, readable = 0): void {
    const first = arena.chains[chain * 2]!
    let left = bytes
    for (let iovec = first + readable; left > 0 && iovec < first + arena.chains[chain * 2 + 1]!; iovec++) {
      const host = arena.iovecs[iovec * 4 + 1]! * 2 ** 32 + arena.iovecs[iovec * 4]!
      const length = Math.min(left, arena.iovecs[iovec * 4 + 2]!)
      this.mark(this.#space.driverAddress(host), length)
      left -= length
    }
  }

  /** True if pages of the log have vanished. */
  get vanished(): boolean {
    return this.#mapping.guardHits() !== 0
  }

  [Symbol.dispose](): void {
    this.#view.detach()
    this.#mapping[Symbol.dispose]()
  }
}
