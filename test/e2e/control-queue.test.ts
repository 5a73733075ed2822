import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, type Lab, sharedLab, traces } from '../support/e2e-lab.ts'
import { expectRefusal } from '../support/e2e-refusal.ts'

type Checked = { readonly name: string; readonly verdict: string; readonly found: string }

const controlQueueCheck = async (lab: Lab, words = ''): Promise<Checked | undefined> => {
  const { checks } = JSON.parse((await lab.sh(`${words} vduse-net doctor --json`)).stdout) as { checks: Checked[] }
  return checks.find(({ name }) => name === 'VDUSE control queue')
}

const REFUSED = 'refused by this kernel: one queue pair'

// drivers/vdpa/vdpa_user/vduse_dev.c, features_is_valid: so it is from Linux 6.10 up to 7.3.
endToEnd('the control queue over VDUSE', () => {
  test('refused by this kernel: doctor says so to whoever may open the node, and leaves nothing', async () => {
    const lab = await sharedLab()
    const before = await traces(lab)
    expect(await controlQueueCheck(lab)).toMatchObject({ verdict: 'ok', found: REFUSED })
    expect(await controlQueueCheck(lab, 'VDUSE_NET_QUEUE_PAIRS=2')).toMatchObject({ verdict: 'fail', found: REFUSED })
    await lab.ok('chmod 666 /dev/vduse/control')
    try {
      const asNobody = await lab.sh(`su nobody -s /bin/sh -c 'vduse-net doctor'`)
      expect(asNobody.stdout).toContain(REFUSED)
    } finally {
      await lab.ok('chmod 600 /dev/vduse/control')
    }
    expect(await traces(lab)).toEqual(before)
  })

  test('said at the start of a card; a probe beside it, even of the same name, disturbs nothing', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab, { args: ['--name', 'probe'] })
    expect(card.log.join('\n')).toContain('VDUSE control queue: refused by this kernel: one queue pair')
    await card.wire()
    expect(await controlQueueCheck(lab)).toMatchObject({ verdict: 'ok', found: REFUSED })
    await card.passes()
    expect((await card.device()).queuePairs).toBe(1)
  })

  test('several queue pairs are refused before anything is done', async () => {
    const lab = await sharedLab()
    const refusal = { says: 'one queue pair', hints: '--socket-path', code: 2 } as const
    await expectRefusal(lab, ['--tap', 'tap0', '--queue-pairs', '2'], refusal)
  })
})
