import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab, traces } from '../support/e2e-lab.ts'
import { startLoad } from '../support/e2e-traffic.ts'

/** 2 s on a machine; an emulated one with a few other things to do is several times slower. */
const SHUTDOWN_MS = 10_000

endToEnd('shutdown', () => {
  for (const signals of [['TERM'], ['INT'], ['HUP'], ['QUIT'], ['ABRT'], ['USR1', 'ALRM', 'TERM', 'TERM']] as const) {
    test(`conformance 65: SIG${signals.join(', SIG')} under load: exit code 0 soon, and nothing is left`, async () => {
      const lab = await sharedLab()
      const before = await traces(lab)
      {
        await using card = await GuestCard.start(lab)
        await card.wire()
        await card.passes()
        const load = await startLoad(card)
        const { rx, tx } = await card.stats()
        await card.until(
          () => card.stats(),
          (now) => now.rx.packets > rx.packets + 100 && now.tx.packets > tx.packets + 100,
        )
        const started = performance.now()
        for (const signal of signals) card.process.kill(signal)
        expect(await card.process.exited).toBe(0)
        expect(performance.now() - started).toBeLessThan(SHUTDOWN_MS)
        expect(await traces(lab)).toEqual(before)
        await load.stop()
      }
    })
  }

  /** What is there once the start has come so far, by a shell's test. A card that takes over finds some of it there. */
  const moments = {
    'its signals are taken over': '-e /tmp/starting.pid',
    'the TAP is there': '-e /sys/class/net/tap0',
    'the VDUSE device is there': '-e /dev/vduse/tap0',
    'the API listens': '-S /run/vduse-net/tap0.sock',
    'the device is on the bus': '-e /sys/bus/vdpa/devices/tap0',
    'a driver is bound': '-e /sys/bus/vdpa/devices/tap0/driver',
  } as const

  for (const takesOver of [false, true]) {
    for (const [moment, condition] of Object.entries(moments)) {
      const whose = takesOver ? 'a card that takes over from one that was killed' : 'a card'
      test(`SIGTERM to ${whose} as soon as ${moment}: exit code 0, and nothing is left`, async () => {
        const lab = await sharedLab()
        const before = await traces(lab)
        if (takesOver) {
          const killed = await GuestCard.start(lab)
          expect((await killed.end('KILL')).code).toBe(128 + 9)
        }
        // In the guest, without a way between the moment and the signal.
        const { code, stderr } = await lab.sh(
          `vduse-net --tap tap0 --pid /tmp/starting.pid & until [ ${condition} ] || ! kill -0 $!; do :; done
          [ -e /tmp/starting.pid ] || until [ -e /tmp/starting.pid ] || ! kill -0 $!; do :; done
          kill -TERM $!; wait $!`,
        )
        expect(code, stderr).toBe(0)
        expect(await traces(lab)).toEqual(before)
      })
    }
  }

  test('a TAP that was there before stays, as it was', async () => {
    const lab = await sharedLab()
    await lab.ok('ip tuntap add tap5 mode tap vnet_hdr && ip link set tap5 mtu 1400')
    const before = await traces(lab)
    {
      const card = await GuestCard.start(lab, { tap: 'tap5' })
      expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
    expect(await lab.ok('ip -o link show tap5')).toContain(' mtu 1400 ')
    await lab.ok('ip link del tap5')
  })
})
