import { afterAll, beforeAll, expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, guestProgram, type Lab, type LabProcess, sharedLab, traces } from '../support/e2e-lab.ts'
import { datagramsTo } from '../support/e2e-traffic.ts'

const MOVES = 5
const MAC = '02:00:5e:10:00:09'

endToEnd('vhost', () => {
  let lab: Lab
  let before: Record<string, string[]>
  let card: GuestCard
  beforeAll(async () => {
    lab = await sharedLab()
    before = await traces(lab)
    await lab.ok('modprobe vhost_vdpa')
    card = await GuestCard.start(lab, { args: ['--bind', 'vhost', '--mac', MAC] })
    await card.addressTap()
  })
  afterAll(async () => {
    await card[Symbol.asyncDispose]()
    await lab.ok('rmmod vhost_vdpa')
  })

  /** A user of /dev/vhost-vdpa-0 that answers for the card's driver, in the place of a VM. */
  const openUser = async (moves: number): Promise<LabProcess> => {
    const user = lab.spawn(`exec ${guestProgram('vhost', '/dev/vhost-vdpa-0', MAC, card.driverIpv4, moves)}`)
    await user.line(/^ready$/)
    return user
  }

  const passes = (): Promise<string> => lab.waitFor(`ping -c 1 -W 1 ${card.driverIpv4}`)

  const closeUser = async (user: LabProcess): Promise<void> => {
    user.kill('KILL')
    expect(await user.exited).toBe(128 + 9)
  }

  test('--bind vhost makes a /dev/vhost-vdpa-0 and no interface', async () => {
    expect(await card.device()).toMatchObject({ driver: 'vhost_vdpa', bind: 'vhost' })
    expect(await lab.ok('ls /sys/bus/vdpa/devices/tap0/ | grep vhost-vdpa')).toBe('vhost-vdpa-0\n')
    expect((await lab.sh('test -c /dev/vhost-vdpa-0')).code).toBe(0)
    expect((await lab.sh('ls -d /sys/bus/vdpa/devices/tap0/virtio*')).code).not.toBe(0)
  })

  test('a user of it gets and sends packets, and again after it was killed', async () => {
    for (let round = 0; round < 2; round++) {
      const user = await openUser(0)
      await passes()
      expect(await card.ping()).toEqual({ sent: 20, received: 20 })
      const device = await card.device()
      expect(device.status.names).toContain('DRIVER_OK')
      expect(device.features.negotiated).toEqual(['mac', 'version_1', 'access_platform'])
      const udp = await datagramsTo(card, { count: 100, sizes: [100, 1400] })
      expect(udp).toMatchObject({ sent: 200, returned: 200 })
      expect(udp.returnedSha256).toBe(udp.sentSha256)
      await closeUser(user)
      await card.until(
        () => card.device(),
        ({ status }) => status.bits === 0,
      )
    }
    expect((await card.stats()).drops).toMatchObject({ chain_address_unmapped: 0 })
  })

  test(`its memory is replaced ${MOVES} times under traffic: packets go on, in the new one`, async () => {
    const user = await openUser(MOVES)
    await passes()
    const during = await card.ping({ count: 60 * MOVES, intervalSeconds: 0.01, patienceSeconds: 1 })
    await user.line(/^moved$/)
    expect(user.lines.filter((line) => line === 'moved')).toHaveLength(MOVES)
    // A packet or two may have been received into memory that was going.
    expect(during.received).toBeGreaterThan(during.sent - 5 * MOVES)
    expect(await card.ping()).toEqual({ sent: 20, received: 20 })
    const udp = await datagramsTo(card, { count: 100, sizes: [100, 1400] })
    expect(udp).toMatchObject({ sent: 200, returned: 200, returnedSha256: udp.sentSha256 })
    expect((await card.queues()).every(({ quarantined }) => quarantined === null)).toBe(true)
    await closeUser(user)
  })

  test('kill -9 of the card and restart: the user goes on without noticing', async () => {
    const user = await openUser(0)
    await passes()
    await card.end('KILL')
    await card.restart()
    await card.addressTap()
    await passes()
    expect(await card.ping()).toEqual({ sent: 20, received: 20 })
    await closeUser(user)
  })

  test(
    'conformance 65: SIGTERM while a user has it open: the card ends, the user keeps the device, ' +
      'and the next start goes on',
    async () => {
      const user = await openUser(0)
      await passes()
      expect((await card.end()).code).toBe(0)
      expect(card.log.join('\n')).toContain('/dev/vhost-vdpa-0 is open')
      await card.restart()
      await card.logged(/took over a running driver/)
      await card.addressTap()
      await passes()
      expect(await card.ping()).toEqual({ sent: 20, received: 20 })
      // Another driver cannot have it meanwhile.
      expect((await card.end()).code).toBe(0)
      const other = await lab.sh(`vduse-net --tap ${card.tap} --bind virtio`)
      expect(other.stderr).toContain(
        `${card.name}: cannot take it from vhost_vdpa: a process has /dev/vhost-vdpa-0 open`,
      )
      expect(other.code).toBe(1)
      // Nobody answers when the user goes: the kernel waits that long, and gives the device up.
      await lab.ok(`echo 1 > /sys/class/vduse/${card.name}/msg_timeout`)
      await closeUser(user)
    },
  )

  test('a device that the kernel has given up is made anew at the next start, and nothing is left', async () => {
    await card.restart()
    expect(card.log.join('\n')).toContain('it is made anew')
    await card.addressTap()
    const user = await openUser(0)
    await passes()
    await closeUser(user)
    expect((await card.end()).code).toBe(0)
    expect(await traces(lab)).toEqual(before)
  })
})
