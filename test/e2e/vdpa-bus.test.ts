import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab, traces } from '../support/e2e-lab.ts'

endToEnd('vdpa bus', () => {
  test('the device taken off the bus by somebody else: shown, and no reason not to end cleanly', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    {
      await using card = await GuestCard.start(lab)
      await card.wire()
      await card.passes()
      await lab.ok(`vdpa dev del ${card.name}`)
      expect(await card.device()).toMatchObject({ attached: false, driver: null })
      expect((await card.api('GET', '/readyz')).status).toBe(503)
      expect((await card.end()).code).toBe(0)
    }
    expect(await traces(lab)).toEqual(before)
  })

  test(
    'given up by the kernel for a late answer: the card says so and ends with 1, leaves nothing, ' +
      'and can start again',
    async () => {
      const lab = await sharedLab()
      const before = await traces(lab)
      {
        await using card = await GuestCard.start(lab)
        await card.wire()
        await card.passes()
        await lab.ok(`echo 1 > /sys/class/vduse/${card.name}/msg_timeout`)
        card.process.kill('STOP')
        await lab.ok(`echo ${card.name} > /sys/bus/vdpa/drivers/virtio_vdpa/unbind`)
        card.process.kill('CONT')
        expect(await card.process.exited).toBe(1)
        expect(card.log.join('\n')).toContain('the kernel has marked the device broken')
        expect(await traces(lab)).toEqual(before)
        await card.restart()
        await card.wire()
        await card.passes()
        expect((await card.end()).code).toBe(0)
      }
      expect(await traces(lab)).toEqual(before)
    },
  )
})
