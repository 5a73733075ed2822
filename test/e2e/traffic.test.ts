import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab } from '../support/e2e-lab.ts'
import { datagrams, transfer } from '../support/e2e-traffic.ts'

const lossless = { sent: 20, received: 20 }

endToEnd('ping', () => {
  test('loses nothing, at full size over IPv4 and IPv6', async () => {
    await using card = await GuestCard.start(await sharedLab())
    await card.wire()
    await card.passes()
    expect(await card.ping()).toEqual(lossless)
    expect(await card.ping({ size: 1500 })).toEqual(lossless)
    expect(await card.ping({ size: 1500, ipv6: true })).toEqual(lossless)
  })

  for (const mtu of [1280, 9000, 65521]) {
    test(`loses nothing at full size with --mtu ${mtu}`, async () => {
      await using card = await GuestCard.start(await sharedLab(), { args: ['--mtu', String(mtu)] })
      const netdev = await card.wire()
      await card.passes()
      expect(await card.inDriver(`cat /sys/class/net/${netdev}/mtu`)).toBe(`${mtu}\n`)
      expect(await card.ping({ size: mtu })).toEqual(lossless)
      expect(await card.ping({ size: mtu, ipv6: true })).toEqual(lossless)
    })
  }
})

endToEnd('contents', () => {
  test('of 64 MiB over TCP arrive as sent, both ways, IPv4 and IPv6', async () => {
    await using card = await GuestCard.start(await sharedLab())
    await card.wire()
    await card.passes()
    for (const ipv6 of [false, true]) {
      for (const direction of ['tx', 'rx'] as const) {
        const { sent, received } = await transfer(card, { direction, ipv6, megabytes: 64 })
        expect(received.bytes).toBe(64 << 20)
        expect(received.sha256).toBe(sent.sha256)
      }
    }
  })

  test('of UDP datagrams of every size arrive as sent, both ways, IPv4 and IPv6', async () => {
    await using card = await GuestCard.start(await sharedLab())
    await card.wire()
    await card.passes()
    for (const ipv6 of [false, true]) {
      for (const direction of ['tx', 'rx'] as const) {
        for (const bytes of [4, 100, 1400, 4000, 60_000]) {
          const count = 40
          const result = await datagrams(card, { direction, ipv6, count, bytes })
          expect(result).toMatchObject({ sent: count, returned: count, bytes: count * bytes })
          expect(result.returnedSha256).toBe(result.sentSha256)
        }
      }
    }
  })
})
