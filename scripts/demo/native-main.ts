/**
 * `native-main.ts STARTED_MS`: the native half of `npm start`, as a process of its own. It sends its parent a {@link
 * NativeOutcome}.
 */
import { LabError } from '../lab/command.ts'
import type { NativeOutcome } from './native.ts'
import { runNativeDemo } from './native-demo.ts'
import { Report, StepFailure } from './report.ts'

const outcome = async (): Promise<NativeOutcome> => {
  try {
    return { figures: await runNativeDemo(new Report(Number(process.argv[2]))) }
  } catch (error) {
    const expected = error instanceof StepFailure || error instanceof LabError
    return { failure: expected ? error.message : ((error as Error).stack ?? String(error)) }
  }
}

process.send!(await outcome())
process.disconnect!()
