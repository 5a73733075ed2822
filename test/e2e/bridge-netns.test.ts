import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, type Lab, type LabProcess, sharedLab, traces } from '../support/e2e-lab.ts'
import { withTun } from '../support/e2e-tun.ts'

const ports = async (lab: Lab): Promise<string[]> =>
  [...(await lab.ok('bridge link')).matchAll(/^\d+: (\S+?): .* master (\S+) /gm)].map(([, port, at]) => `${port}@${at}`)

endToEnd('a TAP that was there before', () => {
  test('joins the bridge while its card runs, answers the host there, and leaves it at the end', async () => {
    const lab = await sharedLab()
    await lab.ok('ip link add br0 type bridge && ip link set br0 up && ip addr add 10.9.0.1/24 dev br0')
    await lab.ok('ip tuntap add tap0 mode tap vnet_hdr')
    const before = await traces(lab)
    {
      // Its disposal takes the TAP away too.
      await using card = await GuestCard.start(lab, { args: ['--bridge', 'br0', '--mtu', '1400'] })
      expect(await ports(lab)).toEqual(['tap0@br0'])
      const netdev = await card.join()
      await card.inDriver(`ip addr add 10.9.0.2/24 dev ${netdev}`)
      await lab.waitFor('ping -c 1 -W 1 10.9.0.2')
      // The MTU of the card is the driver's too.
      expect(await card.ping({ size: 1400 })).toEqual({ sent: 20, received: 20 })
      expect(await card.inDriver(`cat /sys/class/net/${netdev}/mtu`)).toBe('1400\n')
      expect((await card.end()).code).toBe(0)
      expect(await ports(lab)).toEqual([])
      expect(await traces(lab)).toEqual(before)
    }
    await lab.ok('ip link del br0')
  })

  test('fits whatever header it was made with, and stays in the bridge that it was in', async () => {
    const lab = await sharedLab()
    await lab.ok('ip link add br0 type bridge && ip tuntap add tap0 mode tap pi && ip link set tap0 master br0')
    expect((await lab.sh('vduse-net --tap tap0 --bridge br0 --dry-run')).code).toBe(0)
    {
      await using card = await GuestCard.start(lab, { args: ['--bridge', 'br0'] })
      expect(await ports(lab)).toEqual(['tap0@br0'])
      await lab.ok('ip link set br0 up && ip addr add 10.9.0.1/24 dev br0')
      const netdev = await card.join()
      await card.inDriver(`ip addr add 10.9.0.2/24 dev ${netdev}`)
      await lab.waitFor('ping -c 1 -W 1 10.9.0.2')
      expect((await card.device()).tap).toMatchObject({ name: 'tap0', vnetHdr: true })
      expect((await card.end()).code).toBe(0)
      expect(await ports(lab)).toEqual(['tap0@br0'])
    }
    await lab.ok('ip link del br0')
  })
})

endToEnd('a TAP in another network namespace', () => {
  test('that is given as a path, with a bridge there', async () => {
    const lab = await sharedLab()
    await lab.ok('ip netns add host1 && ip -n host1 link add br0 type bridge && ip -n host1 link set br0 up')
    const before = await traces(lab)
    const holder: LabProcess = lab.spawn('exec ip netns exec host1 sleep 1000')
    const pid = (await lab.waitFor('pidof sleep')).trim()
    {
      await using card = await GuestCard.start(lab, { args: ['--netns', `/proc/${pid}/ns/net`, '--bridge', 'br0'] })
      // It has gone where the name leads: who holds the namespace does not matter any more.
      holder.kill('KILL')
      await holder.exited
      expect(await lab.ok('ip netns exec host1 bridge link')).toContain('master br0')
      const netdev = await card.join()
      await card.inDriver(`ip addr add 10.9.0.2/24 dev ${netdev}`)
      await lab.ok('ip -n host1 addr add 10.9.0.1/24 dev br0')
      await lab.waitFor('ip netns exec host1 ping -c 1 -W 1 10.9.0.2')
      expect(await card.device()).toMatchObject({ tap: { name: 'tap0', carrier: true }, linkUp: true })
      expect((await card.end()).code).toBe(0)
    }
    expect(await lab.ok('ip netns exec host1 bridge link')).toBe('')
    expect(await traces(lab)).toEqual(before)
    await lab.ok('ip netns del host1')
  })
})

endToEnd('a TAP that is handed over as a descriptor (--tap-fd)', () => {
  test('passes packets, keeps its settings, and goes with the process', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    const words = [...(await withTun(lab, 'tap7', 'tap', 'vnet_hdr')), 'vduse-net', '--tap-fd', '3']
    const process = lab.spawn(words)
    try {
      await process.line(/admin API on/, { timeoutMs: 60_000 })
      expect((await lab.ok('ls /dev/vduse')).split('\n')).toContain('tap7')
      // Up or down is for its maker to say.
      expect(await lab.ok('ip -br link show tap7')).toMatch(/^tap7 +DOWN /)
      await lab.ok('ip link set tap7 up && ip addr add 10.9.0.1/24 dev tap7')
      const netdev = (await lab.waitFor('ls /sys/bus/vdpa/devices/tap7/virtio*/net')).trim()
      await lab.ok(
        [
          'ip netns add driver7',
          `ip link set ${netdev} netns driver7`,
          `ip -n driver7 link set ${netdev} up`,
          `ip -n driver7 addr add 10.9.0.2/24 dev ${netdev}`,
        ].join(' && '),
      )
      await lab.waitFor('ping -c 1 -W 1 10.9.0.2')
      process.kill('TERM')
      expect(await process.exited).toBe(0)
    } finally {
      process.kill('KILL')
      await process.exited
      await lab.ok('ip netns del driver7')
    }
    expect(await traces(lab)).toEqual(before)
  })
})
