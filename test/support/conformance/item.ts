import type { Bench } from './card-driver.ts'
import type { Layout, Transport } from './card-link.ts'

/** One item of the list of conformance tests, of those that a driver can see. `B`: what it runs on. */
export type Item<B extends Bench = Bench> = {
  /** Begins with `conformance` and its number in the list. */
  readonly title: string
  /** It is about rings of one layout only. */
  readonly layout?: Layout
  /** Where it cannot be shown, and why. */
  readonly notOver?: Readonly<Partial<Record<Transport, string>>>
  readonly run: (bench: B) => void
}

/** The number of an item in the list. */
export const numberIn = (title: string): number => Number(/^conformance (\d+)/.exec(title)?.[1] ?? Number.NaN)

/** The items for a layout over a transport. */
export const applicable = <B extends Bench>(
  items: readonly Item<B>[],
  layout: Layout,
  transport: Transport,
): Item<B>[] => items.filter((item) => (item.layout ?? layout) === layout && item.notOver?.[transport] === undefined)
