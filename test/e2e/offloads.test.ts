import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab } from '../support/e2e-lab.ts'
import { datagrams, transfer } from '../support/e2e-traffic.ts'

const directions = ['tx', 'rx'] as const
const families = [false, true] as const

/** TCP and UDP, both ways, IPv4 and IPv6; what arrives must be what was sent. */
const everythingArrives = async (card: GuestCard): Promise<void> => {
  for (const ipv6 of families) {
    for (const direction of directions) {
      const { sent, received } = await transfer(card, { direction, ipv6, megabytes: 4 })
      expect({ ...received, ms: 0 }).toEqual({ ...sent, ms: 0 })
      // Ten at a time: one message to the kernel, which the card or whoever receives it has to take apart (USO).
      const udp = await datagrams(card, { direction, ipv6, count: 40, sizes: [1400], batch: 10 })
      expect(udp).toMatchObject({ sent: 40, returned: 40 })
      expect(udp.returnedSha256).toBe(udp.sentSha256)
    }
  }
}

const switchOffloads = async (card: GuestCard, state: 'on' | 'off'): Promise<void> => {
  const netdev = await card.netdev()
  const features = ['tx', 'rx', 'sg', 'tso', 'gso', 'gro', 'tx-udp-segmentation']
    .map((name) => `${name} ${state}`)
    .join(' ')
  // ethtool says which of them the interface cannot switch, and switches the others.
  await card.lab.sh(`ip netns exec ${card.netns} ethtool -K ${netdev} ${features}`)
  await card.lab.sh(`ethtool -K ${card.tap} ${features}`)
  const shown = await card.inDriver(`ethtool -k ${netdev}`)
  expect(shown).toContain(`tx-checksumming: ${state}`)
  expect(shown).toContain(`tcp-segmentation-offload: ${state}`)
}

endToEnd('offloads', () => {
  test('everything arrives with the offloads of driver and TAP on, off, and on again', async () => {
    await using card = await GuestCard.startQuietly(await sharedLab())
    await card.wire()
    await card.passes()
    const before = await card.stats()
    await everythingArrives(card)
    const on = await card.stats()
    for (const direction of directions) {
      expect(on[direction].gsoPackets).toBeGreaterThan(before[direction].gsoPackets)
      expect(on[direction].csumPackets).toBeGreaterThan(before[direction].csumPackets)
    }

    await switchOffloads(card, 'off')
    const atOff = await card.stats()
    await everythingArrives(card)
    const off = await card.stats()
    expect(off.tx.gsoPackets).toBe(atOff.tx.gsoPackets)
    expect(off.tx.csumPackets).toBe(atOff.tx.csumPackets)
    expect(off.rx.gsoPackets).toBe(atOff.rx.gsoPackets)

    await switchOffloads(card, 'on')
    await everythingArrives(card)
    const again = await card.stats()
    expect(again.tx.gsoPackets).toBeGreaterThan(off.tx.gsoPackets)
    expect(again.rx.gsoPackets).toBeGreaterThan(off.rx.gsoPackets)
    expect((await card.accounts()).drops).toEqual({})
  })

  test('everything arrives over a TAP without vnet header, where the card does checksums and segments', async () => {
    await using card = await GuestCard.startQuietly(await sharedLab(), { args: ['--no-vnet-hdr'] })
    await card.wire()
    await card.passes()
    expect((await card.device()).tap.vnetHdr).toBe(false)
    await everythingArrives(card)
    const { tx } = await card.stats()
    expect(tx.csumPackets).toBeGreaterThan(0)
    expect(tx.gsoPackets).toBeGreaterThan(0)
    expect((await card.accounts()).drops).toEqual({})
  })

  test('everything arrives over a card that offers nothing but what is mandatory', async () => {
    const off = ['csum', 'guest_csum', 'mrg_rxbuf', 'indirect_desc', 'event_idx', 'status', 'mtu']
    await using card = await GuestCard.startQuietly(await sharedLab(), {
      args: ['--features', off.map((name) => `-${name}`).join()],
    })
    await card.wire()
    await card.passes()
    const { negotiated } = (await card.device()).features
    for (const name of [...off, 'host_tso4', 'guest_tso4', 'host_uso']) expect(negotiated).not.toContain(name)
    await everythingArrives(card)
    expect((await card.accounts()).drops).toEqual({})
  })
})
