/**
 * The list of conformance tests as a driver sees them, over VDUSE: a program in the guest plays the driver through
 * /dev/vhost-vdpa-0 and says how each item went. Split rings only: packed ones are not offered over VDUSE. What else cannot be
 * expressed there, and where the other items are: test/conformance/vhost-user-items.test.ts.
 */
import { afterAll, beforeAll, test } from 'bun:test'
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

  beforeAll(async () => {
    lab = await sharedLab()
    await lab.ok('modprobe vhost_vdpa')
    card = await GuestCard.start(lab, { args: ['--bind', 'vhost'] })
    const program = lab.spawn([...(await pushedProgram(lab, 'conformance')), '/dev/vhost-vdpa-0', card.tap])
    const code = await program.exited
    const isOutcome = (line: string): boolean => line.startsWith('{"title":')
    outcomes = program.lines.filter(isOutcome).map((line) => JSON.parse(line) as Outcome)
    said = [`exit code ${code}`, ...program.lines.filter((line) => !isOutcome(line))].join('\n')
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
})
