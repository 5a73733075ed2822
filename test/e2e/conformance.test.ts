/**
 * The list of conformance tests as a driver sees them, over VDUSE: a program in the guest plays the driver through
 * /dev/vhost-vdpa-0 and says how each item went. Split rings only: packed ones are not offered over VDUSE. What else
 * cannot be expressed there, and where the other items are: test/conformance/vhost-user-items.test.ts.
 */
import { afterAll, beforeAll, expect, test } from 'bun:test'
import { applicable } from '../support/conformance/item.ts'
import { items } from '../support/conformance/items.ts'
import { vduseItems } from '../support/conformance/vduse-items.ts'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, type Lab, sharedLab } from '../support/e2e-lab.ts'
import { pushedProgram } from '../support/e2e-pushed.ts'
import type { Outcome } from '../support/guest/conformance.ts'

endToEnd('the card over VDUSE, split rings', () => {
  let lab: Lab
  let card: GuestCard
  let outcomes: Outcome[]
  /** Whatever else the program has said. */
  let said: string

  /** Lets the driver go through the list, or through these items of it. */
  const run = async (...numbers: readonly number[]): Promise<{ outcomes: Outcome[]; said: string }> => {
    const words = [...(await pushedProgram(lab, 'conformance')), '/dev/vhost-vdpa-0', card.tap, ...numbers.map(String)]
    const program = lab.spawn(words)
    const code = await program.exited
    const isOutcome = (line: string): boolean => line.startsWith('{"title":')
    return {
      outcomes: program.lines.filter(isOutcome).map((line) => JSON.parse(line) as Outcome),
      said: [`exit code ${code}`, ...program.lines.filter((line) => !isOutcome(line))].join('\n'),
    }
  }

  beforeAll(async () => {
    lab = await sharedLab()
    await lab.ok('modprobe vhost_vdpa')
    card = await GuestCard.start(lab, { args: ['--bind', 'vhost'] })
    ;({ outcomes, said } = await run())
  })

  afterAll(async () => {
    await card[Symbol.asyncDispose]()
    await lab.ok('rmmod vhost_vdpa')
  })

  for (const { title } of [...applicable(items, 'split', 'vhost-vdpa'), ...vduseItems]) {
    test(title, () => {
      const outcome = outcomes.find((one) => one.title === title)
      if (outcome === undefined) throw new Error(`the driver did not come to it:\n${said}`)
      if (outcome.failure !== null) throw new Error(outcome.failure)
    })
  }

  test(
    'conformance 59: set-up, reset, IOTLB updates and questions are answered within the second ' +
      'that the kernel waits',
    async () => {
      await lab.ok(`echo 1 > /sys/class/vduse/${card.name}/msg_timeout`)
      const { outcomes: timed } = await run(5, 62, 63)
      expect(timed.map(({ failure }) => failure)).toEqual([null, null, null])
      // A device that the kernel has given up ends its card.
      expect((await card.device()).status.bits).toBe(0)
    },
  )
})
