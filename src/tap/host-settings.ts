import { constants } from 'node:os'
import { EXIT, UserError } from '../base/errors.ts'
import { formatMac, type Mac, parseMac } from '../base/mac.ts'
import { NetlinkError } from '../sys/netlink-socket.ts'
import { findBridge, joinBridge } from './bridge.ts'
import { getLink, type Link, type LinkChange, setLink } from './links.ts'
import type { TapInterface } from './tap-interface.ts'

const { EPERM } = constants.errno

/** Desired settings of the interface in the host's network. Null keeps the interface's own. */
export type HostSettings = {
  readonly mac: Mac | null
  /** Bytes. Null: the MTU of the bridge that the interface joins, or its own, but at least {@link mtuMin}. */
  readonly mtu: number | null
  /** Bytes; 0 for any. */
  readonly mtuMin: number
  readonly bridge: string | null
  /** True to set it administratively up; false to leave it as it is. */
  readonly up: boolean
}

/** What was changed on an interface and on its bridge. */
export type AppliedSettings = {
  /** Restores an interface that existed before. */
  readonly undo: LinkChange
  /** Bytes. */
  readonly mtu: number
  /** Side effects on the bridge, a line each. */
  readonly warnings: readonly string[]
}

const words = (change: LinkChange): { readonly what: string; readonly command: string } => {
  if (change.mtu !== undefined) return { what: `set MTU ${change.mtu}`, command: `mtu ${change.mtu}` }
  if (change.address !== undefined) {
    const mac = formatMac(change.address)
    return { what: `set MAC ${mac}`, command: `address ${mac}` }
  }
  return { what: 'bring it up', command: 'up' }
}

/** Throws a UserError that says what the kernel has refused. */
const change = (tap: TapInterface, link: Link, wanted: LinkChange): void => {
  try {
    setLink(tap.netlink, link.index, wanted)
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error
    const { what, command } = words(wanted)
    if (error.errno === EPERM) {
      throw new UserError(
        `${tap.name}: no permission to ${what}`,
        `grant CAP_NET_ADMIN, or have root do it: ip link set ${tap.name} ${command}`,
        EXIT.permission,
      )
    }
    const hint = wanted.mtu === undefined ? `see: ip -d link show ${tap.name}` : `choose ${link.mtuMin}..${link.mtuMax}`
    throw new UserError(`${tap.name}: cannot ${what}: ${error.reason}`, hint)
  }
}

/**
 * The MTU for the interface. A bridge whose MTU nobody has set takes the smallest of its ports (net/bridge/br_if.c,
 * br_mtu_auto_adjust), so a port that joins with less would lower it.
 */
const mtuFor = (link: Link, bridge: Link | null, { mtu, mtuMin }: HostSettings): number => {
  if (mtu !== null) return mtu
  const own = bridge === null || bridge.index === link.master ? link.mtu : Math.min(bridge.mtu, link.mtuMax)
  return Math.max(own, mtuMin)
}

const bridgeWarnings = (tap: TapInterface, before: Link): string[] => {
  const after = getLink(tap.netlink, before.index)
  if (after === null) return []
  const warnings: string[] = []
  if (after.mtu < before.mtu) {
    warnings.push(
      `${before.name}: its MTU went from ${before.mtu} to ${after.mtu}, the MTU of ${tap.name}; ` +
        'to keep it leave --mtu out',
    )
  }
  // A bridge whose MAC nobody has set has the smallest MAC of its ports (net/bridge/br_stp_if.c,
  // br_stp_recalculate_bridge_id).
  const [mac, macBefore] = [formatMac(after.address), formatMac(before.address)]
  if (mac !== macBefore) {
    warnings.push(
      `${before.name}: its MAC went from ${macBefore} to ${mac}, the smallest of its ports; ` +
        `to keep one set it: ip link set ${before.name} address MAC`,
    )
  }
  return warnings
}

/** Applies `undo`. Errors are ignored: an interface or bridge that is gone has nothing to restore. */
export const restore = (tap: TapInterface, undo: LinkChange): void => {
  if (Object.keys(undo).length === 0) return
  try {
    setLink(tap.netlink, tap.index, undo)
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error
  }
}

/** Applies all settings. Throws UserError with the one that cannot be applied, after it has restored the others. */
export const applyHostSettings = (tap: TapInterface, settings: HostSettings): AppliedSettings => {
  const link = tap.link()
  if (link === null) throw new UserError(`${tap.name}: was deleted as it was opened`, 'try again')
  const bridge = settings.bridge === null ? null : findBridge(tap.netlink, settings.bridge, tap.name)
  const mac = settings.mac === null ? null : parseMac(settings.mac)
  const mtu = mtuFor(link, bridge, settings)
  let undo: LinkChange = {}
  try {
    // MAC and MTU first: a bridge reads both from a port that joins.
    if (mac !== null) change(tap, link, { address: mac })
    if (mtu !== link.mtu) {
      change(tap, link, { mtu })
      undo = { mtu: link.mtu }
    }
    const joined = bridge !== null && joinBridge(tap.netlink, link, bridge)
    if (joined) undo = { ...undo, master: 0 }
    if (settings.up && !link.up) change(tap, link, { up: true })
    // An MTU that the user has requested stays.
    if (settings.mtu !== null) undo = joined ? { master: 0 } : {}
    return { undo, mtu, warnings: joined ? bridgeWarnings(tap, bridge) : [] }
  } catch (error) {
    restore(tap, undo)
    throw error
  }
}
