import { join } from 'node:path'
import { buildZigProgram } from './zig-program.ts'

/** The path of the compiled guest agent, a static executable without libc. */
export const buildAgent = (): Promise<string> =>
  buildZigProgram(join(import.meta.dir, 'guest/agent.zig'), {
    name: 'guest agent',
    flags: ['-target', 'x86_64-linux', '-OReleaseSafe', '-fstrip', '-fsingle-threaded'],
  })
