/** Packets and bytes of one counter, Ethernet headers included. */
export type Traffic = { readonly packets: number; readonly bytes: number }

/** The card also knows which packets were larger than the MTU: segmented by whoever needs that, or never. */
type CardTraffic = Traffic & { readonly gsoPackets: number }

/** Everybody's counters at one time. Directions are those of their owner: what the card sends, `tap0` receives. */
export type Counters = {
  /** The driver's interface. */
  readonly driver: { readonly rx: Traffic; readonly tx: Traffic }
  /** The card's GET /v1/stats. */
  readonly card: {
    readonly rx: CardTraffic
    readonly tx: CardTraffic
    readonly drops: Readonly<Record<string, number>>
  }
  /** The TAP's interface. */
  readonly tap: { readonly rx: Traffic; readonly tx: Traffic }
}

/** One way through the card: three that have counted the same packets. */
type Way = { readonly name: string; readonly counted: readonly (readonly [who: string, Traffic])[] }

const waysOf = ({ driver, card, tap }: Counters): readonly Way[] => [
  {
    name: 'driver to TAP',
    counted: [
      ['eth0 sent', driver.tx],
      ['card tx', card.tx],
      ['tap0 received', tap.rx],
    ],
  },
  {
    name: 'TAP to driver',
    counted: [
      ['tap0 sent', tap.tx],
      ['card rx', card.rx],
      ['eth0 received', driver.rx],
    ],
  },
]

const allSame = (values: readonly number[]): boolean => values.every((value) => value === values[0])

const adds = ({ counted }: Way): boolean =>
  allSame(counted.map(([, { packets }]) => packets)) && allSame(counted.map(([, { bytes }]) => bytes))

const dropped = ({ card }: Counters): (readonly [reason: string, packets: number])[] =>
  Object.entries(card.drops).filter(([, packets]) => packets > 0)

/** Has every packet that one of them counted been counted by the others too, and none dropped? */
export const addUp = (counters: Counters): boolean => waysOf(counters).every(adds) && dropped(counters).length === 0

const number = (value: number, width: number): string => value.toLocaleString('en-US').padStart(width)

/** A table for people of what was compared with what. */
export const formatCounters = (counters: Counters): string[] => {
  const lines = [`${''.padEnd(31)}${'packets'.padStart(12)}${'bytes'.padStart(16)}`]
  for (const way of waysOf(counters)) {
    for (const [index, [who, { packets, bytes }]] of way.counted.entries()) {
      const name = index === 0 ? way.name : ''
      const verdict = index < way.counted.length - 1 ? '' : adds(way) ? '  all the same' : '  NOT the same'
      lines.push(`${name.padEnd(16)}${who.padEnd(15)}${number(packets, 12)}${number(bytes, 16)}${verdict}`)
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
