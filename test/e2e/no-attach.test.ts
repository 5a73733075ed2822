import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, type Lab, sharedLab, traces } from '../support/e2e-lab.ts'

/**
 * What its host does with a card that does not attach itself. The kernel refuses a device with a queue that is not set
 * up.
 */
const addToBus = (lab: Lab): Promise<string> => lab.ok('vdpa dev add name tap0 mgmtdev vduse')
const takeFromBus = (lab: Lab): Promise<string> => lab.ok('vdpa dev del tap0')

const untilReady = (card: GuestCard): Promise<unknown> =>
  card.until(
    () => card.api('GET', '/readyz'),
    ({ status }) => status === 200,
  )

const NOT_ATTACHED = { status: 503, body: { ready: false, reason: 'the device is not attached to the vdpa bus' } }

endToEnd('--no-attach', () => {
  test(
    'conformance 58: all queues are set up for the host to put the card on the bus, take it off, ' +
      'and put it there again',
    async () => {
      const lab = await sharedLab()
      const before = await traces(lab)
      {
        await using card = await GuestCard.start(lab, { args: ['--no-attach'] })
        for (let round = 0; round < 2; round++) {
          expect(await card.api('GET', '/readyz')).toMatchObject(NOT_ATTACHED)
          expect(await card.device()).toMatchObject({ attached: false, driver: null, bind: 'none' })
          await addToBus(lab)
          await card.wire()
          await card.passes()
          await untilReady(card)
          expect(await card.device()).toMatchObject({ attached: true, driver: 'virtio_vdpa' })
          if (round === 0) await takeFromBus(lab)
        }
        // Nobody would answer the driver any more: what the host has put on the bus goes too.
        expect((await card.end()).code).toBe(0)
      }
      expect(await traces(lab)).toEqual(before)
    },
  )

  test('serves from a network namespace that has no vDPA bus to manage, and again after a crash', async () => {
    const lab = await sharedLab()
    await lab.ok('ip netns add pod && ip -n pod link set lo up')
    const before = await traces(lab)
    {
      await using card = await GuestCard.start(lab, {
        args: ['--no-attach'],
        prefix: ['ip', 'netns', 'exec', 'pod'],
      })
      expect((await lab.sh('ip link show tap0')).code).toBe(1)
      expect(await card.api('GET', '/readyz')).toMatchObject(NOT_ATTACHED)
      await addToBus(lab)
      const netdev = await card.join()
      await card.inDriver(`ip addr add ${card.driverIpv4}/24 dev ${netdev}`)
      const answers = async (): Promise<void> => {
        await lab.ok(`ip -n pod addr replace ${card.tapIpv4}/24 dev tap0`)
        await lab.waitFor(`ip netns exec pod ping -c 1 -W 1 ${card.driverIpv4}`, { timeoutMs: 60_000 })
      }
      await answers()
      await untilReady(card)

      expect((await card.end('KILL')).code).not.toBe(0)
      await card.restart()
      await answers()
      expect(await card.netdev()).toBe(netdev)
      await untilReady(card)

      await takeFromBus(lab)
      expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
    await lab.ok('ip netns del pod')
  })
})
