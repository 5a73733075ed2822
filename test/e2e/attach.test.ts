import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab, traces } from '../support/e2e-lab.ts'

endToEnd('attach', () => {
  test('a card shows its name, MAC, features and driver in the log, the API, vdpa and the interface', async () => {
    const lab = await sharedLab()
    const mac = '02:00:5e:10:00:01'
    await using card = await GuestCard.start(lab, { tap: 'tap0', args: ['--mac', mac, '--name', 'net0'] })
    const attached = await card.logged(/attached net0/)
    expect(attached).toContain(mac)
    expect(attached).toContain('virtio_vdpa')
    const up = await card.logged(/driver is up/)

    const device = await card.device()
    expect(device).toMatchObject({ name: 'net0', attached: true, mac, driver: 'virtio_vdpa', bind: 'virtio' })
    expect(device.tap).toMatchObject({ name: 'tap0', vnetHdr: true })
    for (const feature of ['version_1', 'csum', 'guest_csum', 'host_tso4', 'host_tso6', 'guest_tso4', 'guest_tso6']) {
      expect(device.features.negotiated).toContain(feature)
      expect(up).toContain(feature)
    }
    expect(device.status.names).toContain('DRIVER_OK')

    expect(await lab.ok('vdpa dev show net0')).toContain('type network mgmtdev vduse')
    const netdev = await card.netdev()
    expect(await lab.ok(`cat /sys/class/net/${netdev}/address`)).toBe(`${mac}\n`)
    expect(await lab.ok(`ethtool -i ${netdev}`)).toContain('driver: virtio_net')
  })

  test('a card is there and gone again three times, and leaves nothing', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    for (let round = 0; round < 3; round++) {
      await using card = await GuestCard.start(lab)
      await card.netdev()
      expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
  })
})
