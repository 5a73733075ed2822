import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab } from '../support/e2e-lab.ts'
import { transfer } from '../support/e2e-traffic.ts'
import { xdpPassObject } from '../support/xdp-object.ts'

const PROGRAM = '/tmp/e2e-pass.o'

endToEnd('XDP over VDUSE', () => {
  test('a driver takes no program while it may receive open checksums, as documented', async () => {
    const lab = await sharedLab()
    await lab.push(xdpPassObject(), PROGRAM)
    await using card = await GuestCard.start(lab)
    await card.wire()
    const netdev = await card.netdev()
    const { code, stderr } = await lab.sh(
      `ip netns exec ${card.netns} ip link set ${netdev} xdp obj ${PROGRAM} sec xdp`,
    )
    expect([code !== 0, stderr]).toEqual([true, expect.stringContaining('GRO_HW/CSUM')])
    await card.passes()
  })

  test('with --features -guest_csum it takes one, and TCP passes both ways', async () => {
    const lab = await sharedLab()
    await lab.push(xdpPassObject(), PROGRAM)
    await using card = await GuestCard.start(lab, { args: ['--features', '-guest_csum'] })
    await card.wire()
    const netdev = await card.netdev()
    await card.inDriver(`ip link set ${netdev} xdp obj ${PROGRAM} sec xdp`)
    expect(await card.inDriver(`ip link show ${netdev}`)).toContain('prog/xdp')
    await card.passes()
    for (const ipv6 of [false, true]) {
      for (const direction of ['tx', 'rx'] as const) {
        const { sent, received } = await transfer(card, { direction, ipv6, megabytes: 4 })
        expect({ ...received, ms: 0 }).toEqual({ ...sent, ms: 0 })
      }
    }
  })
})
