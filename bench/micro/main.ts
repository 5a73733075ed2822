/**
 * `npm run bench:micro`: nanoseconds of the parts. A chain through a ring of each layout, checksums and segmentation,
 * and, where a TAP can be had, a packet through it. Compare lines of one run only.
 */
import { join } from 'node:path'
import { LabError, run } from '../../scripts/lab/command.ts'
import { buildZigProgram } from '../../scripts/lab/zig-program.ts'
import { noRealTaps } from '../../test/support/network-namespace.ts'

const root = join(import.meta.dir, '../..')

const show = (title: string, argv: readonly string[]): void => {
  console.log(`\n== ${title}`)
  const { exitCode } = Bun.spawnSync([...argv], { stdio: ['ignore', 'inherit', 'inherit'] })
  if (exitCode !== 0) throw new LabError(`${title}: exit code ${exitCode}`)
}

const bun = (file: string): string[] => [process.execPath, join(import.meta.dir, file)]

try {
  await run([process.execPath, join(root, 'scripts/native.ts')])
  const bytes = await buildZigProgram(join(root, 'bench/native/bytes.zig'), {
    name: 'byte benchmark',
    // For the processors that the program is for.
    flags: ['--main-mod-path', root, '-mcpu=baseline', '-OReleaseFast', '-fsingle-threaded'],
    imports: ['checksum', 'frame', 'segment'].map((name) => join(root, `zig/${name}.zig`)),
  })
  show('checksums and segmentation', [bytes])
  show('split ring', bun('split-ring.ts'))
  show('packed ring', bun('packed-ring.ts'))
  if (noRealTaps === null) show('packets through a TAP', bun('tap-io.ts'))
  else console.log(`\n== packets through a TAP: not measured, ${noRealTaps}`)
} catch (error) {
  if (!(error instanceof LabError)) throw error
  console.error(`bench:micro: ${error.message}`)
  process.exitCode = 1
}
