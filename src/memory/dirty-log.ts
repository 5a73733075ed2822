import { VHOST_LOG_PAGE } from '../abi/vhost-user.ts'
import type { AddressSpace } from './address-space.ts'
import type { IovecArena } from './iovec-arena.ts'
import type { Mapping } from './region.ts'
import { LogView } from './ring-view.ts'

/**
 * One bit for each page of the driver's memory that the device has written, for a front-end that migrates its guest:
 * docs/interop/ vhost-user.rst, "Migration". The front-end takes bits away at the same time, and then reads the page,
 * so a bit is set after the page is written, and set again even if it seems to be there.
 */
export class DirtyLog {
  readonly #space: AddressSpace
  readonly #mapping: Mapping
  readonly #view: LogView

  /** Takes over `mapping`, all of which is the log. */
  constructor(space: AddressSpace, mapping: Mapping) {
    this.#space = space
    this.#mapping = mapping
    this.#view = new LogView(mapping)
  }

  /**
   * The device has written something in [address, address + length). Pages that the log does not know are passed over.
   */
  mark(address: number, length: number): void {
    const bits = this.#view.bytes
    const last = Math.min(Math.floor((address + length - 1) / VHOST_LOG_PAGE), bits.length * 8 - 1)
    for (let page = Math.floor(address / VHOST_LOG_PAGE); page <= last; page++) {
      // ORDERING: a full barrier between the writes to the page and the bit.
      Atomics.or(bits, Math.floor(page / 8), 1 << (page % 8))
    }
  }

  /** The device has written the first `bytes` bytes of a chain of the arena, behind its first `readable` iovecs. */
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

  /** Has the log been taken away? */
  get vanished(): boolean {
    return this.#mapping.guardHits() !== 0
  }

  [Symbol.dispose](): void {
    this.#view.detach()
    this.#mapping[Symbol.dispose]()
  }
}
