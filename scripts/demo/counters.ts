/** Packets and bytes of one counter, Ethernet headers included. */
export type Traffic = { readonly packets: number; readonly bytes: number }

/** The card also knows which packets were larger than the MTU: segmented by whoever needs that, or never. */
type CardTraffic = Traffic & { readonly gsoPackets: number }

/** Of GET /v1/stats, what is compared. */
export type CardStats = {
  readonly rx: CardTraffic
  readonly tx: CardTraffic
  readonly drops: Readonly<Record<string, number>>
}

/** Both directions of one end. */
export type EndCounters = { readonly rx: Traffic; readonly tx: Traffic }

/** All counters at one time. Directions are the owner's: what the card sends, `tap0` receives. */
export type Counters = {
  /** The driver's interface. */
  readonly driver: EndCounters
  readonly card: CardStats
  /** The TAP's interface. */
  readonly tap: EndCounters
}

/** What the two ends are called. */
export type Ends = { readonly driver: string; readonly tap: string }

/** From one interface of `ip -s -j link show`. */
export const endCounters = ([link]: readonly [{ readonly stats64: EndCounters }]): EndCounters => ({
  rx: { packets: link.stats64.rx.packets, bytes: link.stats64.rx.bytes },
  tx: { packets: link.stats64.tx.packets, bytes: link.stats64.tx.bytes },
})

const less = (a: Traffic, b: Traffic): Traffic => ({ packets: a.packets - b.packets, bytes: a.bytes - b.bytes })

const lessEnd = (a: EndCounters, b: EndCounters): EndCounters => ({ rx: less(a.rx, b.rx), tx: less(a.tx, b.tx) })

const lessCard = (a: CardTraffic, b: CardTraffic): CardTraffic => ({
  ...less(a, b),
  gsoPackets: a.gsoPackets - b.gsoPackets,
})

/** The counters' increase since `before`. */
export const countedSince = (before: Counters, now: Counters): Counters => ({
  driver: lessEnd(now.driver, before.driver),
  card: {
    rx: lessCard(now.card.rx, before.card.rx),
    tx: lessCard(now.card.tx, before.card.tx),
    drops: Object.fromEntries(
      Object.entries(now.card.drops).map(([reason, packets]) => [reason, packets - (before.card.drops[reason] ?? 0)]),
    ),
  },
  tap: lessEnd(now.tap, before.tap),
})

/** One way through the card: three that have counted the same packets. */
type Way = { readonly name: string; readonly counted: readonly (readonly [who: string, Traffic])[] }

const waysOf = ({ driver, card, tap }: Counters, ends: Ends): readonly Way[] => [
  {
    name: 'driver to TAP',
    counted: [
      [`${ends.driver} sent`, driver.tx],
      ['card tx', card.tx],
      [`${ends.tap} received`, tap.rx],
    ],
  },
  {
    name: 'TAP to driver',
    counted: [
      [`${ends.tap} sent`, tap.tx],
      ['card rx', card.rx],
      [`${ends.driver} received`, driver.rx],
    ],
  },
]

const allSame = (values: readonly number[]): boolean => values.every((value) => value === values[0])

const adds = ({ counted }: Way): boolean =>
  allSame(counted.map(([, { packets }]) => packets)) && allSame(counted.map(([, { bytes }]) => bytes))

const dropped = ({ card }: Counters): (readonly [reason: string, packets: number])[] =>
  Object.entries(card.drops).filter(([, packets]) => packets > 0)

/** Has every packet that one of them counted been counted by the others too, and none dropped? */
export const addUp = (counters: Counters): boolean =>
  waysOf(counters, { driver: '', tap: '' }).every(adds) && dropped(counters).length === 0

const number = (value: number, width: number): string => value.toLocaleString('en-US').padStart(width)

/** A table for people of what was compared with what. */
export const formatCounters = (counters: Counters, ends: Ends): string[] => {
  const lines = [`${''.padEnd(33)}${'packets'.padStart(12)}${'bytes'.padStart(16)}`]
  for (const way of waysOf(counters, ends)) {
    for (const [index, [who, { packets, bytes }]] of way.counted.entries()) {
      const name = index === 0 ? way.name : ''
      const verdict = index < way.counted.length - 1 ? '' : adds(way) ? '  all the same' : '  NOT the same'
      lines.push(`${name.padEnd(16)}${who.padEnd(17)}${number(packets, 12)}${number(bytes, 16)}${verdict}`)
    }
  }
  const { tx, rx } = counters.card
  lines.push(
    `larger than the MTU (TSO): ${number(tx.gsoPackets, 0)} from the driver, ${number(rx.gsoPackets, 0)} to it`,
  )
  const reasons = dropped(counters).map(([reason, packets]) => `${reason} ${packets}`)
  lines.push(`dropped by the card: ${reasons.length === 0 ? 'none' : reasons.join(', ')}`)
  return lines
}
