import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab } from '../support/e2e-lab.ts'

endToEnd('the admin API', () => {
  test('listens on a socket that only its owner can reach', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab)
    expect(await lab.ok(`stat -c '%a %u %F' /run/vduse-net ${card.socket}`)).toBe('700 0 directory\n600 0 socket\n')
  })
})
