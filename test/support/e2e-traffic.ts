import type { GuestCard } from './e2e-card.ts'
import { answerOf, guestProgram } from './e2e-lab.ts'
import type { Transferred } from './guest/tcp.ts'
import type { Probed } from './guest/udp.ts'

/** `tx` and `rx` are the driver's: `tx` goes from its interface to the TAP. */
export type Direction = 'tx' | 'rx'

/** What one TCP connection is to carry. */
export type TcpOptions = { readonly direction: Direction; readonly ipv6?: boolean; readonly megabytes: number }

const PORT = 5300
const TRANSFER_TIMEOUT_MS = 300_000

const inNamespace = (card: GuestCard, isDriver: boolean, command: string): string =>
  isDriver ? `exec ip netns exec ${card.netns} ${command}` : `exec ${command}`

const addressOf = (card: GuestCard, isDriver: boolean, ipv6: boolean): string =>
  isDriver ? (ipv6 ? card.driverIpv6 : card.driverIpv4) : ipv6 ? card.tapIpv6 : card.tapIpv4

/** One TCP connection over the card, random content; what either end has seen of it. */
export const transfer = async (
  card: GuestCard,
  { direction, ipv6 = false, megabytes }: TcpOptions,
): Promise<{ sent: Transferred; received: Transferred }> => {
  const receiverIsDriver = direction === 'rx'
  const address = addressOf(card, receiverIsDriver, ipv6)
  const receiver = card.lab.spawn(inNamespace(card, receiverIsDriver, guestProgram('tcp-receive', address, PORT)))
  await receiver.line(/^listening$/)
  const sender = inNamespace(card, !receiverIsDriver, guestProgram('tcp-send', address, PORT, megabytes << 20))
  try {
    const sent = answerOf<Transferred>(await card.lab.ok(sender, { timeoutMs: TRANSFER_TIMEOUT_MS }))
    const code = await receiver.exited
    if (code !== 0) throw new Error(`the receiver failed: ${receiver.lines.join('\n')}`)
    return { sent, received: answerOf<Transferred>(receiver.lines) }
  } finally {
    receiver.kill('KILL')
  }
}

/** What datagrams are to be sent, by whom. */
export type UdpOptions = {
  /** `tx`: the driver's side sends, and the TAP's side sends the same back. */
  readonly direction: Direction
  readonly ipv6?: boolean
  /** Of each size. */
  readonly count: number
  /** Bytes of a datagram's content, 4 at least. */
  readonly sizes: readonly number[]
  /** Datagrams handed to the kernel as one. */
  readonly batch?: number
}

/** Datagrams of random content over the card and back. */
export const datagrams = async (card: GuestCard, options: UdpOptions): Promise<Probed> => {
  const { direction, ipv6 = false, count, sizes, batch = 1 } = options
  const echoIsDriver = direction === 'rx'
  const address = addressOf(card, echoIsDriver, ipv6)
  const echo = card.lab.spawn(inNamespace(card, echoIsDriver, guestProgram('udp-echo', address, PORT)))
  try {
    await echo.line(/^listening$/)
    const prober = guestProgram('udp-probe', address, PORT, count, sizes.join(), batch)
    return answerOf<Probed>(
      await card.lab.ok(inNamespace(card, !echoIsDriver, prober), { timeoutMs: TRANSFER_TIMEOUT_MS }),
    )
  } finally {
    echo.kill('KILL')
    await echo.exited
  }
}

/** Datagrams from the TAP's side to a driver that sends them back by itself. */
export const datagramsTo = async (
  card: GuestCard,
  { count, sizes }: Pick<UdpOptions, 'count' | 'sizes'>,
): Promise<Probed> =>
  answerOf<Probed>(await card.lab.ok(guestProgram('udp-probe', card.driverIpv4, PORT, count, sizes.join())))

/** TCP both ways between TAP and driver that goes on until it is stopped. */
export const startLoad = async (card: GuestCard): Promise<{ stop(): Promise<void> }> => {
  await card.inDriver('iperf3 -s -D')
  const client = card.lab.spawn(`exec iperf3 -c ${card.driverIpv4} -t 600 --bidir --connect-timeout 5000`)
  return {
    stop: async () => {
      client.kill('KILL')
      await client.exited
      await card.lab.sh('killall -q iperf3')
    },
  }
}
