import { test } from 'bun:test'
import { endToEnd, sharedLab } from '../support/e2e-lab.ts'
import { expectRefusal } from '../support/e2e-refusal.ts'

endToEnd('bad input', () => {
  test('an interface that is no TAP is left alone', async () => {
    await expectRefusal(await sharedLab(), ['--tap', 'lo'], {
      says: ['lo', 'is not a TAP'],
      hints: ['--bridge'],
      code: 1,
    })
  })
})
