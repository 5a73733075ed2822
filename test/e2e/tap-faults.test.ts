import { afterAll, beforeAll, expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, type Lab, sharedLab } from '../support/e2e-lab.ts'

/** Of one processor. */
const IDLE_CPU_PERCENT = 5

/** One packet, which nothing repeats. */
const pingOnce = (address: string): string => `ping -c 1 -W 20 ${address}`

/** Much more than an answer takes, and much less than a neighbour table takes to forget a MAC. */
const AT_ONCE_MS = 2_000

/** What ping has said: the answer came before anybody had to look for the other side's address for long. */
const answersAtOnce = (ping: string): void => {
  expect(Number(/time=([0-9.]+) ms/.exec(ping)?.[1])).toBeLessThan(AT_ONCE_MS)
}

endToEnd('TAP faults', () => {
  let lab: Lab
  let card: GuestCard
  beforeAll(async () => {
    lab = await sharedLab()
    card = await GuestCard.start(lab)
    await card.wire()
    await card.passes()
  })
  afterAll(() => card[Symbol.asyncDispose]())

  /** Waits until the driver has seen the carrier come or go. */
  const carrier = async (up: boolean): Promise<void> => {
    const netdev = await card.netdev()
    await lab.waitFor(`ip -n ${card.netns} -o link show ${netdev} | grep ${up ? 'LOWER_UP' : 'NO-CARRIER'}`)
  }

  /** The driver pings the TAP's address. */
  const firstPing = async (ipv6 = false): Promise<void> =>
    answersAtOnce(await card.inDriver(pingOnce(ipv6 ? card.tapIpv6 : card.tapIpv4)))

  test('an idle card takes next to no processor time', async () => {
    expect(await card.cpuPercent()).toBeLessThan(IDLE_CPU_PERCENT)
  })

  test('the TAP is taken down and up: the carrier follows, and packets pass again', async () => {
    for (let round = 0; round < 3; round++) {
      await lab.ok(`ip link set ${card.tap} down`)
      await carrier(false)
      await lab.ok(`ip link set ${card.tap} up`)
      await carrier(true)
      await card.addressTap()
      await card.passes()
    }
  })

  test('the TAP is deleted and comes back: the first ping of the driver is answered', async () => {
    for (const ipv6 of [false, true]) {
      const { index } = (await card.device()).tap
      const mac = await lab.ok(`cat /sys/class/net/${card.tap}/address`)
      expect(mac).toStartWith('fe:')
      await firstPing(ipv6)
      await lab.ok(`ip link del ${card.tap}`)
      await card.until(
        () => card.device(),
        ({ tap }) => tap.index !== null && tap.index !== index,
      )
      await carrier(true)
      expect(await lab.ok(`cat /sys/class/net/${card.tap}/address`)).toBe(mac)
      await card.addressTap()
      await firstPing(ipv6)
    }
  })

  test('the process is killed and started again: the first ping of the driver is answered', async () => {
    for (const ipv6 of [false, true]) {
      await firstPing(ipv6)
      await card.end('KILL')
      await card.restart()
      await card.logged(/took over a running driver .*; tap0 is a new interface, without the addresses/)
      await card.addressTap()
      await firstPing(ipv6)
    }
  })

  test('the TAP’s MTU is raised: its user is told what to do, once, and packets go on', async () => {
    await lab.ok(`ip link set ${card.tap} mtu 9000`)
    await card.logged(/MTU of 9000 now, and the driver was told 1500/)
    await card.passes()
    expect(card.log.filter((line) => line.includes('MTU of 9000'))).toHaveLength(1)
    await lab.ok(`ip link set ${card.tap} mtu 1500`)
  })

  test('the TAP is deleted under traffic: it comes back, and so do link and packets', async () => {
    for (let round = 0; round < 3; round++) {
      const index = (await card.device()).tap.index
      const load = lab.spawn(`exec ip netns exec ${card.netns} ping -q -i 0.002 ${card.tapIpv4}`)
      await lab.ok(`ip link del ${card.tap}`)
      const back = await card.until(
        () => card.device(),
        ({ tap }) => tap.index !== null && tap.index !== index,
      )
      expect(back.tap).toMatchObject({ name: card.tap, vnetHdr: true, carrier: true })
      await carrier(true)
      await card.addressTap()
      await card.passes()
      load.kill('INT')
      await load.exited
    }
    expect(card.log.filter((line) => line.includes('was deleted'))).toHaveLength(3)
    expect((await card.api('GET', '/readyz')).status).toBe(200)
  })

  test('the TAP cannot come back: the link stays down without a busy loop, until it can', async () => {
    // Another interface takes its name before the card can.
    card.process.kill('STOP')
    await lab.ok(`ip link del ${card.tap} && ip link add ${card.tap} type dummy`)
    card.process.kill('CONT')
    await carrier(false)
    const load = lab.spawn(`exec ip netns exec ${card.netns} ping -q -i 0.2 ${card.tapIpv4}`)
    expect(await card.cpuPercent()).toBeLessThan(IDLE_CPU_PERCENT)
    load.kill('INT')
    await load.exited
    expect(await card.device()).toMatchObject({ linkUp: false, tap: { index: null, carrier: false } })
    expect((await card.api('GET', '/readyz')).body).toMatchObject({ ready: false })
    await lab.ok(`ip link del ${card.tap}`)
    await card.logged(/exists again/)
    await carrier(true)
    await card.addressTap()
    await card.passes()
  })

  test('the TAP is renamed: packets go on', async () => {
    await lab.ok(`ip link set ${card.tap} down && ip link set ${card.tap} name other0 && ip link set other0 up`)
    await lab.ok(
      `ip addr replace ${card.tapIpv4}/24 dev other0 && ip -6 addr replace ${card.tapIpv6}/64 dev other0 nodad`,
    )
    await card.passes()
    expect((await card.end()).code).toBe(0)
    expect((await lab.sh('ip link show other0')).code).toBe(1)
  })
})

endToEnd('a TAP that persists', () => {
  test('after kill -9 and a restart the host’s side is as before: the first ping is answered, both ways', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab, { args: ['--tap-persist'] })
    await card.wire()
    await card.passes()
    const index = await lab.ok(`cat /sys/class/net/${card.tap}/ifindex`)
    for (let round = 0; round < 3; round++) {
      await card.end('KILL')
      await card.restart()
      answersAtOnce(await card.inDriver(pingOnce(card.tapIpv4)))
      answersAtOnce(await lab.ok(pingOnce(card.driverIpv4)))
    }
    expect((await card.end()).code).toBe(0)
    expect(await lab.ok(`cat /sys/class/net/${card.tap}/ifindex`)).toBe(index)
    expect(await lab.ok(`ip -4 -o addr show ${card.tap}`)).toContain(card.tapIpv4)
  })
})
