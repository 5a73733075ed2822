import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { type NativeProcess, until } from '../../scripts/frontends/native-process.ts'
import { startVirtioUser, type Testpmd, type VirtioUserOptions } from '../../scripts/frontends/testpmd.ts'
import { deviceHoldings, type Holdings } from '../support/frontend-holdings.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'

/** Starting DPDK takes seconds where other things run; fetching it at first takes minutes. */
const TEST_MS = 600_000

/** Enough that every ring has gone around several times. */
const PACKETS = 20_000

const QUEUE_SIZE = 256

let rig: FrontendRig

beforeAll(async () => {
  if (noFrontends === null) rig = await FrontendRig.open()
}, 10 * TEST_MS)
afterAll(() => rig?.[Symbol.dispose]())

type Card = { process: NativeProcess; ifname: string; socket: string }

const drive = (card: Pick<Card, 'socket'>, options: Partial<VirtioUserOptions> = {}): Promise<Testpmd> =>
  startVirtioUser({
    netns: rig.netns,
    socket: card.socket,
    queueSize: QUEUE_SIZE,
    lcores: { main: 0, forwarding: [1] },
    ...options,
  })

/** Packets from the driver: every one that its ring took comes out of the TAP. */
const transmits = async (driver: Testpmd, ifname: string): Promise<void> => {
  const before = { driver: (await driver.stats()).txPackets, tap: rig.counters(ifname).rxPackets }
  const tapGot = (): number => rig.counters(ifname).rxPackets - before.tap
  await driver.startForwarding('txonly', 64)
  await until(`${PACKETS} packets on ${ifname}`, () => tapGot() >= PACKETS)
  await driver.stopForwarding()
  const sent = (await driver.stats()).txPackets - before.driver
  await until(`all ${sent} packets on ${ifname}`, () => tapGot() >= sent)
  expect(tapGot()).toBe(sent)
}

/** Packets to the driver: every one that was taken out of the TAP arrives. */
const receives = async (driver: Testpmd, ifname: string, frameBytes = 64): Promise<void> => {
  const before = { driver: (await driver.stats()).rxPackets, tap: rig.counters(ifname).txPackets }
  const tapGave = (): number => rig.counters(ifname).txPackets - before.tap
  const driverGot = async (): Promise<number> => (await driver.stats()).rxPackets - before.driver
  await driver.startForwarding('rxonly')
  {
    await using generator = await rig.tapLoad('generate', ifname, frameBytes)
    await until(`${PACKETS} packets in the driver`, async () => (await driverGot()) >= PACKETS)
    await generator.stop()
  }
  // The device reads on until the TAP is empty; then both ends have counted the same, and go on doing so.
  let gave = -1
  await until('both ends count the same', async () => {
    const before = gave
    gave = tapGave()
    return gave === before && (await driverGot()) === gave
  })
  await driver.stopForwarding()
  expect(await driverGot()).toBe(tapGave())
}

/** Packets there and back: each that comes in on the TAP goes out on it, exchanged addresses and all. */
const returns = async (driver: Testpmd, ifname: string): Promise<void> => {
  await driver.startForwarding('macswap')
  await using ping = rig.start('tap-load ping', rig.tapLoadWords('ping', ifname, 64, 1000))
  expect(await ping.ended(60_000)).toBe(0)
  expect(ping.linesSince(0)[0]).toStartWith('lost 0 ')
  await driver.stopForwarding()
}

/** The case is what it says: both sides have agreed on it. */
const expectNegotiated = async (device: NativeProcess, options: Partial<VirtioUserOptions>): Promise<void> => {
  const [, names = ''] = await device.line(/driver is up: ([\w ]+)/)
  const agreed = names.split(' ')
  expect(agreed.includes('ring_packed')).toBe(options.packed ?? false)
  expect(agreed.includes('in_order')).toBe(options.inOrder ?? false)
  expect(agreed.includes('mrg_rxbuf')).toBe(options.mergeable ?? false)
}

/** What the device holds before any driver, once it has started everything that it needs. */
const holdingsAtRest = async (card: Card): Promise<Holdings> => {
  await card.process.line(/waiting for a front-end/)
  return deviceHoldings(card.process.pid)
}

/** Waits until the device holds no more than before, or fails with what it holds. */
const letsGo = async (card: Card, before: Holdings): Promise<void> => {
  const same = (): boolean => Bun.deepEquals(deviceHoldings(card.process.pid), before)
  await until('the device lets go', same).catch(() => {})
  expect(deviceHoldings(card.process.pid)).toEqual(before)
}

const cases: readonly [string, Partial<VirtioUserOptions>][] = [
  ['split', { inOrder: false, mergeable: true }],
  ['split, buffers not mergeable', { inOrder: false, mergeable: false }],
  ['split, in order', { inOrder: true, mergeable: true }],
  ['split, in order, buffers not mergeable', { inOrder: true, mergeable: false }],
  ['split, vectorised', { inOrder: false, mergeable: false, vectorized: true }],
  ['packed', { packed: true, inOrder: false, mergeable: true }],
  ['packed, buffers not mergeable', { packed: true, inOrder: false, mergeable: false }],
  ['packed, in order', { packed: true, inOrder: true, mergeable: true }],
  ['packed, in order, buffers not mergeable', { packed: true, inOrder: true, mergeable: false }],
  ['packed, vectorised', { packed: true, inOrder: true, mergeable: false, vectorized: true }],
]

describe.skipIf(noFrontends !== null)('DPDK', () => {
  test.each(cases)(
    'sends, receives and returns packets, none unaccounted for: %s',
    async (_, options) => {
      const card = await rig.device()
      await using _device = card.process
      await using driver = await drive(card, options)
      await expectNegotiated(card.process, options)
      await transmits(driver, card.ifname)
      await receives(driver, card.ifname)
      await receives(driver, card.ifname, 1514)
      await returns(driver, card.ifname)
      await driver.quit()
    },
    TEST_MS,
  )

  test.each([
    ['split', {}],
    ['packed', { packed: true }],
  ] as const)(
    'uses two queue pairs: %s',
    async (_, options) => {
      const card = await rig.device({ queuePairs: 2 })
      await using _device = card.process
      await using driver = await drive(card, { queues: 2, ...options })
      await expectNegotiated(card.process, { mergeable: true, inOrder: true, ...options })
      await transmits(driver, card.ifname)
      await receives(driver, card.ifname)
      const counters = (await driver.command('show port xstats 0')).join('\n')
      for (const queue of ['rx_q0', 'rx_q1', 'tx_q0', 'tx_q1']) {
        const packets = Number(new RegExp(`^${queue}_good_packets: (\\d+)`, 'm').exec(counters)?.[1])
        expect(packets, queue).toBeGreaterThan(0)
      }
      await driver.quit()
    },
    TEST_MS,
  )

  test(
    'listens itself, and the device connects',
    async () => {
      const socket = rig.socket()
      const ifname = rig.interfaceName()
      // The driver waits for the device before its prompt comes up.
      const driving = drive({ socket }, { server: true })
      driving.catch(() => {})
      const card = await rig.device({ ifname, socket, client: true })
      await using _device = card.process
      await using driver = await driving
      await transmits(driver, ifname)
      await receives(driver, ifname)
      await driver.quit()
    },
    TEST_MS,
  )

  test(
    'comes and goes: the device serves one driver after the other and keeps nothing of them',
    async () => {
      const card = await rig.device()
      await using _device = card.process
      const before = await holdingsAtRest(card)
      for (const packed of [false, true, false]) {
        await using driver = await drive(card, { packed })
        await transmits(driver, card.ifname)
        await driver.quit()
        await letsGo(card, before)
      }
    },
    TEST_MS,
  )

  test(
    'is killed fifty times with packets on their way: the device frees everything and serves the next',
    async () => {
      const card = await rig.device()
      await using _device = card.process
      const before = await holdingsAtRest(card)
      await using generator = await rig.tapLoad('generate', card.ifname, 64)
      for (let kill = 0; kill < 50; kill++) {
        const tapBefore = rig.counters(card.ifname)
        await using driver = await drive(card, { packed: kill % 2 === 1 })
        // What sends its own packets takes none.
        const sends = kill % 4 < 2
        await driver.startForwarding(sends ? 'txonly' : 'macswap', 64)
        await until('packets flow', () => {
          const { rxPackets, txPackets } = rig.counters(card.ifname)
          return rxPackets > tapBefore.rxPackets + 1000 && (sends || txPackets > tapBefore.txPackets + 1000)
        })
        await driver.stop()
        await letsGo(card, before)
        expect(card.process.alive).toBe(true)
      }
      await generator.stop()
      await using driver = await drive(card)
      await transmits(driver, card.ifname)
      await driver.quit()
    },
    10 * TEST_MS,
  )

  test(
    'goes on when the device is killed and started again',
    async () => {
      const socket = rig.socket()
      const ifname = rig.interfaceName()
      const driving = drive({ socket }, { server: true })
      driving.catch(() => {})
      const first = await rig.device({ ifname, socket, client: true })
      await using driver = await driving
      await driver.startForwarding('txonly', 64)
      await until('packets flow', () => rig.counters(ifname).rxPackets > PACKETS)
      await first.process.stop()
      const second = await rig.device({ socket, client: true })
      await using _device = second.process
      await until('packets flow again', () => rig.counters(second.ifname).rxPackets > PACKETS)
      await driver.stopForwarding()
      await driver.quit()
    },
    TEST_MS,
  )
})
