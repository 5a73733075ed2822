import { VHOST_LOG_PAGE } from '../../abi/vhost-user.ts'
import type { Refusal } from '../../device/virtio-net-device.ts'
import type { PeerSignal } from '../../sys/peer-signal.ts'
import type { MemoryTable } from './memory-table.ts'
import type { GuestRange, SessionVring } from './session-vring.ts'
import { SharedArea } from './shared-area.ts'
import type { VringHost } from './vring-host.ts'

/** Longest log, bytes: one view must cover it. Enough for 128 TiB of guest memory. */
const LOG_BYTES_MAX = 2 ** 32

/**
 * Dirty logging while a front-end migrates its guest. Queue workers log written pages once there is a log and
 * VHOST_F_LOG_ALL is set; writes to a used ring also need the ring's flag. docs/interop/vhost-user.rst, "Migration".
 */
export class DirtyLogging {
  readonly #vrings: readonly SessionVring[]
  readonly #host: VringHost
  readonly #memory: MemoryTable
  #area: SharedArea | null = null
  #signal: PeerSignal | null = null
  #enabled = false

  constructor(vrings: readonly SessionVring[], host: VringHost, memory: MemoryTable) {
    this.#vrings = vrings
    this.#host = host
    this.#memory = memory
  }

  /** Replaces the log. A refusal leaves the old log in use. `fd` is the caller's. */
  setLog(fd: number, lengthBytes: number, offset: number): Refusal {
    if (lengthBytes > LOG_BYTES_MAX) return `a log of ${lengthBytes} bytes`
    const area = SharedArea.map(fd, lengthBytes, offset)
    if (typeof area === 'string') return area
    const tooSmall =
      !fits(area, { start: 0, lengthBytes: this.#memory.guestEnd }) ||
      this.#vrings.some(
        ({ usedLog, usedBytes }) => usedLog >= 0 && !fits(area, { start: usedLog, lengthBytes: usedBytes }),
      )
    if (tooSmall) {
      area[Symbol.dispose]()
      return `a log of ${lengthBytes} bytes has no room for all pages`
    }
    const old = this.#area
    this.#area = area
    this.#apply()
    old?.[Symbol.dispose]()
    return null
  }

  /** Sets what is signalled after pages were logged. */
  setSignal(signal: PeerSignal): void {
    const old = this.#signal
    this.#signal = signal
    this.#apply()
    old?.[Symbol.dispose]()
  }

  setEnabled(enabled: boolean): Refusal {
    if (enabled === this.#enabled) return null
    if (enabled && this.#area !== null && !fits(this.#area, { start: 0, lengthBytes: this.#memory.guestEnd }))
      return 'the log has no room for all memory'
    this.#enabled = enabled
    this.#apply()
    return null
  }

  /** Refuses memory regions whose pages the log in use does not cover. */
  refuseMemory(regions: readonly { readonly guestAddress: number; readonly lengthBytes: number }[]): Refusal {
    const area = this.#enabled ? this.#area : null
    const outside = regions.some(
      ({ guestAddress, lengthBytes }) => area !== null && !fits(area, { start: guestAddress, lengthBytes }),
    )
    return outside ? 'memory beyond the end of the log' : null
  }

  /** True if the log covers a used ring of that many bytes. Also true without a log, or without an address (-1). */
  covers(usedLog: number, usedBytes: number): boolean {
    if (usedLog < 0) return true
    const range = { start: usedLog, lengthBytes: usedBytes }
    return Number.isSafeInteger(usedLog + usedBytes) && (this.#area === null || fits(this.#area, range))
  }

  /** Sets the guest address that writes to a used ring are logged under; -1 for none. */
  setUsedLog(index: number, usedLog: number, usedBytes: number): void {
    const vring = this.#vrings[index]!
    vring.usedBytes = usedBytes
    if (vring.usedLog === usedLog) return
    vring.usedLog = usedLog
    this.#host.setUsedLog(index, usedLog)
  }

  [Symbol.dispose](): void {
    this.#host.setLog(null, -1)
    for (const index of this.#vrings.keys()) this.setUsedLog(index, -1, 0)
    this.#area?.[Symbol.dispose]()
    this.#signal?.[Symbol.dispose]()
  }

  #apply(): void {
    this.#host.setLog(this.#enabled ? (this.#area?.borrowed ?? null) : null, this.#signal?.target ?? -1)
  }
}

const fits = (area: SharedArea, { start, lengthBytes }: GuestRange): boolean =>
  start >= 0 && start + lengthBytes <= area.borrowed.lengthBytes * 8 * VHOST_LOG_PAGE
