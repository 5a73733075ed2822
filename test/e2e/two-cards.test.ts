import { expect, test } from 'bun:test'
import { GuestCard, pingSingly } from '../support/e2e-card.ts'
import { endToEnd, sharedLab, traces } from '../support/e2e-lab.ts'
import { transfer } from '../support/e2e-traffic.ts'

endToEnd('two cards', () => {
  test('at once, each with its own driver, TAP, MAC and counters', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    {
      await using one = await GuestCard.start(lab, { tap: 'tap0', number: 0 })
      await using two = await GuestCard.start(lab, { tap: 'tap1', number: 1 })
      for (const card of [one, two]) {
        await card.wire()
        await card.passes()
      }
      expect((await one.device()).mac).not.toBe((await two.device()).mac)
      const devices = await lab.ok('vdpa dev show')
      for (const name of ['tap0', 'tap1']) expect(devices).toContain(`${name}: type network mgmtdev vduse`)

      const idle = await two.stats()
      const { sent, received } = await transfer(one, { direction: 'tx', megabytes: 4 })
      expect(received.sha256).toBe(sent.sha256)
      // A stray packet of the kernel's own aside.
      expect((await two.stats()).tx.packets - idle.tx.packets).toBeLessThan(20)
      const other = await transfer(two, { direction: 'rx', megabytes: 4 })
      expect(other.received.sha256).toBe(other.sent.sha256)

      // One's end is not the other's business.
      expect((await one.end()).code).toBe(0)
      expect(await two.ping()).toEqual({ sent: 20, received: 20 })
      expect((await two.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
  })

  test('in one bridge: their drivers reach each other, IPv4 and IPv6', async () => {
    const lab = await sharedLab()
    await lab.ok('ip link add br0 type bridge && ip link set br0 up')
    const before = await traces(lab)
    {
      await using one = await GuestCard.start(lab, { tap: 'tap0', number: 0, args: ['--bridge', 'br0'] })
      await using two = await GuestCard.start(lab, {
        tap: 'tap1',
        number: 0,
        args: ['--bridge', 'br0'],
        netns: 'other',
      })
      expect(await lab.ok('bridge link show')).toMatch(/tap0.*master br0[\s\S]*tap1.*master br0/)
      for (const [card, host] of [
        [one, 2],
        [two, 3],
      ] as const) {
        const netdev = await card.join()
        await card.inDriver(`ip addr add 10.9.0.${host}/24 dev ${netdev}`)
        await card.inDriver(`ip addr add fd09::${host}/64 dev ${netdev} nodad`)
      }
      await lab.waitFor(`ip netns exec ${one.netns} ping -c 1 -W 1 10.9.0.3`)
      await lab.waitFor(`ip netns exec ${one.netns} ping -c 1 -W 1 fd09::3`)
      for (const address of ['10.9.0.3', 'fd09::3']) {
        const words = ['ip', 'netns', 'exec', one.netns, 'ping', '-W', 5, address]
        expect(await pingSingly(lab, 20, words)).toEqual({ sent: 20, received: 20 })
      }
      for (const card of [one, two]) expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
    await lab.ok('ip link del br0')
  })

  test('with its TAP in a network namespace of its own (--netns)', async () => {
    const lab = await sharedLab()
    await lab.ok('ip netns add host1')
    const before = await traces(lab)
    {
      await using card = await GuestCard.start(lab, { tap: 'tap0', args: ['--netns', 'host1'] })
      expect((await lab.sh('ip link show tap0')).code).toBe(1)
      const netdev = await card.join()
      await card.inDriver(`ip addr add 10.9.0.2/24 dev ${netdev}`)
      await lab.ok('ip -n host1 addr add 10.9.0.1/24 dev tap0')
      await lab.waitFor('ip netns exec host1 ping -c 1 -W 1 10.9.0.2')
      const words = ['ip', 'netns', 'exec', 'host1', 'ping', '-W', 5, '10.9.0.2']
      expect(await pingSingly(lab, 20, words)).toEqual({ sent: 20, received: 20 })
      expect((await card.end()).code).toBe(0)
      expect((await lab.sh('ip -n host1 link show tap0')).code).toBe(1)
    }
    expect(await traces(lab)).toEqual(before)
    await lab.ok('ip netns del host1')
  })
})
