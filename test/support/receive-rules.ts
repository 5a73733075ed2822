import { RECEIVE_FILTER, RECEIVE_LIST_MAX } from '../../src/abi/receive-filter.ts'
import { formatMac } from '../../src/base/mac.ts'
import type { ReceiveFilter } from '../../src/device/receive-filter.ts'

/** The rules that hold, as a queue worker finds them. */
export type Rules = {
  readonly filtering: boolean
  readonly anyUnicast: boolean
  readonly anyMulticast: boolean
  readonly broadcast: boolean
  readonly byVlan: boolean
  /** Addresses in order, as text. */
  readonly unicast: readonly string[]
  readonly multicast: readonly string[]
  readonly vlans: readonly number[]
}

const NO_ADDRESS = 2n ** 64n - 1n

/** Reads a filter's shared memory. */
export const rulesOf = (filter: ReceiveFilter): Rules => {
  const view = new DataView(filter.buffer)
  const at = view.getUint32(RECEIVE_FILTER.generation, true) % 2 === 0 ? RECEIVE_FILTER.even : RECEIVE_FILTER.odd
  const flag = (offset: number): boolean => view.getUint32(offset, true) === 1
  const list = (offset: number): string[] =>
    Array.from({ length: RECEIVE_LIST_MAX }, (_, index) => offset + 8 * index)
      .filter((place) => view.getBigUint64(place, true) !== NO_ADDRESS)
      .map((place) => {
        if (view.getUint16(place + 6, true) !== 0) throw new Error('an address of more than 48 bits')
        return formatMac(new Uint8Array(filter.buffer, place, 6))
      })
  return {
    filtering: flag(at.filtering),
    anyUnicast: flag(at.any_unicast),
    anyMulticast: flag(at.any_multicast),
    broadcast: flag(at.broadcast),
    byVlan: flag(at.by_vlan),
    unicast: list(at.unicast),
    multicast: list(at.multicast),
    vlans: Array.from({ length: 4096 }, (_, vlan) => vlan).filter(
      (vlan) => ((view.getUint32(at.vlans + 4 * (vlan >>> 5), true) >>> (vlan % 32)) & 1) === 1,
    ),
  }
}
