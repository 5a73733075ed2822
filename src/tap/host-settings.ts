import { constants } from 'node:os'
import { EXIT, UserError } from '../base/errors.ts'
import { formatMac, type Mac, parseMac } from '../base/mac.ts'
import { NetlinkError } from '../sys/netlink-socket.ts'
import { findBridge, joinBridge } from './bridge.ts'
import { getLink, type Link, type LinkChange, setLink } from './links.ts'
import type { TapInterface } from './tap-interface.ts'

const { EPERM } = constants.errno

/** How the host's network is to see the interface. Null leaves the interface's own. */
export type HostSettings = {
  readonly mac: Mac | null
  /** Bytes. Null: at least {@link mtuMin}, and what the bridge has that the interface joins. */
  readonly mtu: number | null
  /** Bytes; 0 for any. */
  readonly mtuMin: number
  readonly bridge: string | null
  /** Administratively up; false leaves that to others. */
  readonly up: boolean
}

/** What was done to an interface, and to whom else. */
export type Settled = {
  /** What gives an interface that was there before back what it had. */
  readonly undo: LinkChange
  /** Bytes. */
  readonly mtu: number
  /** What the bridge was changed by, a line each. */
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

/** Throws UserError that says what the kernel did not take. */
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
 * The MTU for the interface. A bridge takes the smallest MTU of its ports for its own unless somebody has set it
 * (net/bridge/br_if.c, br_mtu_auto_adjust), so that a port that joins with less would lower it.
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
      `${before.name}: its MTU went from ${before.mtu} to ${after.mtu}, which ${tap.name} has; ` +
        'to keep it leave --mtu out',
    )
  }
  // It has the smallest MAC among its ports unless somebody has set it (net/bridge/br_stp_if.c,
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

/** Puts back what `undo` says. An interface or a bridge that went first needs none of it. */
export const restore = (tap: TapInterface, undo: LinkChange): void => {
  if (Object.keys(undo).length === 0) return
  try {
    setLink(tap.netlink, tap.index, undo)
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error
  }
}

/** Sets all of it. Throws UserError with what cannot be had, and has put back the rest then. */
export const settle = (tap: TapInterface, settings: HostSettings): Settled => {
  const link = tap.link()
  if (link === null) throw new UserError(`${tap.name}: was deleted as it was opened`, 'try again')
  const bridge = settings.bridge === null ? null : findBridge(tap.netlink, settings.bridge, tap.name)
  const mac = settings.mac === null ? null : parseMac(settings.mac)
  const mtu = mtuFor(link, bridge, settings)
  let undo: LinkChange = {}
  try {
    // Before it joins a bridge, which takes note of both.
    if (mac !== null) change(tap, link, { address: mac })
    if (mtu !== link.mtu) {
      change(tap, link, { mtu })
      undo = { mtu: link.mtu }
    }
    const joined = bridge !== null && joinBridge(tap.netlink, link, bridge)
    if (joined) undo = { ...undo, master: 0 }
    if (settings.up && !link.up) change(tap, link, { up: true })
    // An MTU that was asked for stays.
    if (settings.mtu !== null) undo = joined ? { master: 0 } : {}
    return { undo, mtu, warnings: joined ? bridgeWarnings(tap, bridge) : [] }
  } catch (error) {
    restore(tap, undo)
    throw error
  }
}
