import type { Mac } from '../base/mac.ts'

/** Which TAP, and how it is to be. */
export type TapOptions = {
  /** By name (created if there is none) or a descriptor that somebody else has attached. It is ours from now on. */
  readonly source: { readonly name: string } | { readonly fd: number }
  /** Queues, each with a descriptor of its own. A descriptor handed over is one. */
  readonly queues: number
  /** IFF_VNET_HDR. Of a descriptor handed over only `false` counts, and says that it must have none. */
  readonly vnetHdr: boolean
  /**
   * Of an interface that is created; null leaves it to the kernel, which takes a new one each time. One that exists
   * keeps its own.
   */
  readonly mac: Mac | null
  /** Bytes; null for the interface's own, or that of the bridge which it joins. */
  readonly mtu: number | null
  readonly bridge: string | null
  /** Name under /run/netns or a path: where the TAP lives. Null for where the process is. */
  readonly netns: string | null
  /** An interface that is created stays when the process ends, in any way, with all that is set on it. */
  readonly persist: boolean
}
