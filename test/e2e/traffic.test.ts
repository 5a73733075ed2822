import { beforeAll, expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, type Lab, sharedLab } from '../support/e2e-lab.ts'
import { datagrams, transfer } from '../support/e2e-traffic.ts'

const lossless = { sent: 20, received: 20 }
const directions = ['tx', 'rx'] as const
const families = [false, true] as const

endToEnd('traffic', () => {
  let lab: Lab
  let card: GuestCard
  beforeAll(async () => {
    lab = await sharedLab()
    card = await GuestCard.startQuietly(lab)
    await card.wire()
    await card.passes()
  })

  test('ping loses nothing, small and at full size, IPv4 and IPv6', async () => {
    expect(await card.ping()).toEqual(lossless)
    expect(await card.ping({ size: 1500 })).toEqual(lossless)
    expect(await card.ping({ size: 1500, ipv6: true })).toEqual(lossless)
  })

  for (const ipv6 of families) {
    for (const direction of directions) {
      test(`64 MiB over TCP and IPv${ipv6 ? 6 : 4} arrive as sent, ${direction}`, async () => {
        const { sent, received } = await transfer(card, { direction, ipv6, megabytes: 64 })
        expect(received.bytes).toBe(64 << 20)
        expect(received.sha256).toBe(sent.sha256)
      })
    }
  }

  test('UDP datagrams of every size arrive as sent, both ways, IPv4 and IPv6', async () => {
    for (const ipv6 of families) {
      for (const direction of directions) {
        const count = 40
        const result = await datagrams(card, { direction, ipv6, count, sizes: [4, 1400, 60_000] })
        expect(result).toMatchObject({ sent: 3 * count, returned: 3 * count, bytes: count * (4 + 1400 + 60_000) })
        expect(result.returnedSha256).toBe(result.sentSha256)
      }
    }
  })

  test('TCP segments of 65,000 bytes pass in one piece, seen by the card and on both of its sides', async () => {
    const netdev = await card.netdev()
    // A sender that paces itself by a slow guest's rate would make shorter ones.
    const noPacing = 'sysctl -qw net.ipv4.tcp_pacing_ca_ratio=1000 net.ipv4.tcp_pacing_ss_ratio=1000'
    await lab.ok(noPacing)
    await card.inDriver(noPacing)
    const before = await card.stats()
    for (const direction of directions) {
      const dump = (name: string): string => `tcpdump -Z root -n -p -i ${name} -c 3 greater 65000 and tcp 2>&1`
      const onTap = lab.spawn(`exec ${dump(card.tap)}`)
      const onDriver = lab.spawn(`exec ip netns exec ${card.netns} ${dump(netdev)}`)
      await Promise.all([onTap.line(/listening on/), onDriver.line(/listening on/)])
      await transfer(card, { direction, megabytes: 16 })
      for (const seen of [onTap, onDriver]) {
        await seen.line(/3 packets captured/)
        // What tcpdump tells of TCP is without its 52 bytes of headers, and those of Ethernet.
        expect(seen.lines.filter((line) => /length 6[45]\d{3}/.test(line))).toHaveLength(3)
      }
    }
    const after = await card.stats()
    // 16 MiB are 258 of the longest segments, and more than 11,000 packets otherwise.
    for (const direction of directions) {
      expect(after[direction].gsoPackets - before[direction].gsoPackets).toBeGreaterThan(200)
      expect(after[direction].packets - before[direction].packets).toBeLessThan(6_000)
    }
  })

  test('counters of the driver, the card and the TAP add up', async () => {
    // Equal as soon as nothing is under way; a stray packet of the kernel's own may just be.
    const accounts = await card.until(
      () => card.accounts(),
      ({ driver, card, tap }) => driver.rx.packets === tap.tx.packets && driver.tx.packets === card.tx.packets,
    )
    expect(accounts.drops).toEqual({})
    expect(accounts.driver.rx).toEqual(accounts.card.rx)
    expect(accounts.card.rx).toEqual(accounts.tap.tx)
    expect(accounts.driver.tx).toEqual(accounts.card.tx)
    expect(accounts.card.tx).toEqual(accounts.tap.rx)
    expect(accounts.card.rx.bytes).toBeGreaterThan(0)
  })

  test('the card ends cleanly after all that', async () => {
    expect((await card.end()).code).toBe(0)
    await card[Symbol.asyncDispose]()
  })

  for (const mtu of [9000, 65521]) {
    test(`ping loses nothing at full size with --mtu ${mtu}`, async () => {
      await using jumbo = await GuestCard.start(lab, { args: ['--mtu', String(mtu)] })
      const netdev = await jumbo.wire()
      await jumbo.passes()
      expect(await jumbo.inDriver(`ip -o link show ${netdev}`)).toContain(` mtu ${mtu} `)
      expect(await lab.ok(`ip -o link show ${jumbo.tap}`)).toContain(` mtu ${mtu} `)
      expect(await jumbo.ping({ size: mtu })).toEqual(lossless)
      expect(await jumbo.ping({ size: mtu, ipv6: true })).toEqual(lossless)
      const { sent, received } = await transfer(jumbo, { direction: 'tx', megabytes: 4 })
      expect(received.sha256).toBe(sent.sha256)
    })
  }
})
