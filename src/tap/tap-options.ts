import type { Mac } from '../base/mac.ts'

/** Which TAP to use, and its desired settings. */
export type TapOptions = {
  /** By name (created if there is none), or an inherited descriptor that is attached already; the Tap owns it. */
  readonly source: { readonly name: string } | { readonly fd: number }
  /** Number of queues, each with a descriptor of its own. 1 with an inherited descriptor. */
  readonly queues: number
  /** IFF_VNET_HDR. With an inherited descriptor: true accepts either kind; false requires one without vnet header. */
  readonly vnetHdr: boolean
  /** MAC of a created interface; null for a random one from the kernel. An existing interface keeps its own. */
  readonly mac: Mac | null
  /** Bytes; null for the interface's own, or that of the bridge that it joins. */
  readonly mtu: number | null
  readonly bridge: string | null
  /** Network namespace of the TAP: a name under /run/netns or a path. Null for the process's own. */
  readonly netns: string | null
  /** Keep a created interface, with all its settings, when the process ends or dies. */
  readonly persist: boolean
}
