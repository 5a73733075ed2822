import { NETLINK_ROUTE } from '../abi/netlink.ts'
import { RTM_DELLINK, RTM_NEWLINK, RTMGRP_LINK } from '../abi/rtnetlink.ts'
import type { NetlinkMessage } from '../sys/netlink-message.ts'
import { NetlinkSocket } from '../sys/netlink-socket.ts'
import { getLink, type Link, linkIndexOf, parseLink } from './links.ts'

/** The state of the interface that a monitor follows. */
export type LinkState = {
  /** False once the interface is deleted, or has moved to another network namespace. */
  readonly exists: boolean
  readonly name: string
  readonly index: number
  /** Administratively up. */
  readonly up: boolean
  readonly carrier: boolean
  /** Bytes. */
  readonly mtu: number
  /** Index of its bridge or bond; 0 for none. */
  readonly master: number
}

const gone = (name: string, index: number): LinkState => ({
  exists: false,
  name,
  index,
  up: false,
  carrier: false,
  mtu: 0,
  master: 0,
})

const sameState = (a: LinkState, b: LinkState): boolean =>
  a.exists === b.exists &&
  a.name === b.name &&
  a.index === b.index &&
  a.up === b.up &&
  a.carrier === b.carrier &&
  a.mtu === b.mtu &&
  a.master === b.master

/**
 * Follows one interface by its index, so that a rename does not matter. Synchronous: poll {@link fd} and call {@link
 * drain} when it is readable. It receives events of the network namespace in which it was created.
 */
export class TapLinkMonitor {
  readonly #events = new NetlinkSocket(NETLINK_ROUTE, RTMGRP_LINK)
  readonly #requests = new NetlinkSocket(NETLINK_ROUTE)
  #state: LinkState

  /** Throws SysError. */
  constructor(index: number) {
    // The events socket is open already, so a later change arrives as an event.
    this.#state = this.#query(index, '')
  }

  /** Readable when any interface of the namespace has changed. */
  get fd(): number {
    return this.#events.fd
  }

  /** The state after the last {@link drain}. */
  get state(): LinkState {
    return this.#state
  }

  /**
   * The state after all events received so far. Never blocks. Returns the same object as the last call if nothing has
   * changed. Handles a few hundred events a call; the descriptor stays readable when there are more.
   */
  drain(): LinkState {
    let next = this.#state
    const { lost } = this.#events.drain((message) => {
      next = apply(next, message)
    })
    if (lost) next = this.#query(next.index, next.name)
    if (!sameState(next, this.#state)) this.#state = next
    return this.#state
  }

  [Symbol.dispose](): void {
    this.#events[Symbol.dispose]()
    this.#requests[Symbol.dispose]()
  }

  #query(index: number, lastName: string): LinkState {
    const link = getLink(this.#requests, index)
    return link === null ? gone(lastName, index) : stateOf(link)
  }
}

const stateOf = ({ name, index, up, carrier, mtu, master }: Link): LinkState => ({
  exists: true,
  name,
  index,
  up,
  carrier,
  mtu,
  master,
})

const apply = (state: LinkState, message: NetlinkMessage): LinkState => {
  if (linkIndexOf(message) !== state.index) return state
  if (message.type === RTM_NEWLINK) return stateOf(parseLink(message))
  if (message.type === RTM_DELLINK) return gone(state.name, state.index)
  return state
}
