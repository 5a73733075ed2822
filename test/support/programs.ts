/** Programs in Zig that the tests run beside the card. Compiled once: scripts/prepare.ts does so before any test. */
import { join } from 'node:path'
import { buildZigProgram } from '../../scripts/lab/zig-program.ts'

/** bench/native/tap-load.zig: makes and counts packets on a TAP. */
export const buildTapLoad = (): Promise<string> =>
  buildZigProgram(join(import.meta.dir, '../../bench/native/tap-load.zig'), {
    name: 'load generator',
    flags: ['-lc', '-target', 'x86_64-linux-gnu.2.28', '-OReleaseFast', '-fstrip', '-fsingle-threaded'],
  })

/** test/support/guest/rxhash.zig: tells the hashes that a guest's driver reports. */
export const buildRxhash = (): Promise<string> =>
  buildZigProgram(join(import.meta.dir, 'guest/rxhash.zig'), {
    name: 'hash reader',
    flags: ['-lc', '-target', 'x86_64-linux-musl', '-OReleaseSafe', '-fstrip'],
  })
