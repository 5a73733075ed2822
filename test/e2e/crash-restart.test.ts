import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { answerOf, endToEnd, guestProgram, sharedLab, traces } from '../support/e2e-lab.ts'
import type { Transferred } from '../support/guest/tcp.ts'

const PORT = 5400

endToEnd('crash', () => {
  test('kill -9 and restart, three times under traffic: the driver goes on untouched, no byte is lost', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    // One that stays: its addresses are not the card's to bring back.
    await lab.ok('ip tuntap add tap0 mode tap vnet_hdr')
    {
      await using card = await GuestCard.start(lab)
      const netdev = await card.wire()
      await card.passes()
      const interfaceOf = (): Promise<string> => card.inDriver(`cat /sys/class/net/${netdev}/ifindex`)
      const index = await interfaceOf()

      const receiver = lab.spawn(
        `exec ip netns exec ${card.netns} ${guestProgram('tcp-receive', card.driverIpv4, PORT)}`,
      )
      await receiver.line(/^listening$/)
      const sender = lab.spawn(`exec ${guestProgram('tcp-send', card.driverIpv4, PORT, 0, 'until-stopped')}`)
      for (let round = 0; round < 3; round++) {
        const { rx } = await card.stats()
        await card.until(
          () => card.stats(),
          (now) => now.rx.packets > rx.packets + 100,
        )
        expect((await card.end('KILL')).code).toBe(128 + 9)
        await card.restart()
        await card.logged(/took over a running driver/)
        await card.passes()
        expect(await interfaceOf()).toBe(index)
      }
      // Until the connection moves again.
      await card.until(
        () => card.stats(),
        ({ rx, tx }) => rx.packets > 200 && tx.packets > 100,
        60_000,
      )
      sender.kill('TERM')
      expect(await sender.exited).toBe(0)
      expect(await receiver.exited).toBe(0)
      const [sent, received] = [answerOf<Transferred>(sender.lines), answerOf<Transferred>(receiver.lines)]
      expect({ ...received, ms: 0 }).toEqual({ ...sent, ms: 0 })

      expect((await card.device()).resets).toBe(0)
      expect(await card.ping()).toEqual({ sent: 20, received: 20 })
      expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
  })

  test('kill -9 takes a TAP of the card with it; the restart makes it anew and packets pass', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    {
      await using card = await GuestCard.start(lab)
      await card.wire()
      await card.passes()
      await card.end('KILL')
      expect((await lab.sh(`ip link show ${card.tap}`)).code).toBe(1)
      // What the driver sends now nobody sees; what it has sent is found in the ring.
      await lab.sh(`ip netns exec ${card.netns} ping -c 3 -i 0.1 -W 1 ${card.tapIpv4}`)
      await card.restart()
      await card.addressTap()
      await card.passes()
      expect((await card.device()).mac).toBe(
        (await card.inDriver(`cat /sys/class/net/${await card.netdev()}/address`)).trim(),
      )
      expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
  })

  test('kill -9 before the driver is bound, and while it is gone: the restart serves', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await lab.ok(`echo ${card.name} > /sys/bus/vdpa/drivers/virtio_vdpa/unbind`)
    await card.end('KILL')
    // It binds the driver again.
    await card.restart()
    await card.wire()
    await card.passes()
    expect((await card.end()).code).toBe(0)
  })

  /** What appears in the course of a start, in this order. */
  const moments = ['/dev/vduse/tap0', '/sys/bus/vdpa/devices/tap0', '/sys/bus/vdpa/devices/tap0/virtio*']
  for (const moment of moments) {
    test(`kill -9 during the start, as soon as there is ${moment}: the restart serves`, async () => {
      const lab = await sharedLab()
      const before = await traces(lab)
      // In one command, since the guest goes on while it talks to the outside.
      const watch = `until ls -d ${moment}; do :; done >/dev/null 2>&1`
      await lab.ok(`vduse-net --tap tap0 >/dev/null 2>&1 & ${watch}; kill -9 $!`)
      {
        await using card = await GuestCard.start(lab)
        await card.wire()
        await card.passes()
        expect((await card.end()).code).toBe(0)
      }
      expect(await traces(lab)).toEqual(before)
    })
  }

  test('a second process of the same name is refused while the first lives', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    for (const [admin, why] of [
      ['', `${card.socket} is served by another process`],
      ['--admin off', `/dev/vduse/${card.name} is busy`],
    ]) {
      const second = await lab.sh(`vduse-net --tap tap9 --name ${card.name} ${admin}`)
      expect(second.stderr).toContain(why!)
      expect(second.code).toBe(1)
      expect((await lab.sh('ip link show tap9')).code).toBe(1)
    }
    await card.wire()
    await card.passes()
  })

  test('stopped for three seconds (SIGSTOP) and continued: packets pass again', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    await card.wire()
    await card.passes()
    const load = lab.spawn(`exec ip netns exec ${card.netns} ping -q -i 0.002 ${card.tapIpv4}`)
    card.process.kill('STOP')
    expect((await card.ping({ count: 60, intervalSeconds: 0.05, patienceSeconds: 1 })).received).toBe(0)
    card.process.kill('CONT')
    await card.passes()
    load.kill('INT')
    await load.exited
    expect(await card.ping()).toEqual({ sent: 20, received: 20 })
    expect((await card.api('GET', '/readyz')).status).toBe(200)
  })
})
