import { againstProgram, bunTest, checks, type Part, preparing, realFrontends, runParts } from './parts.ts'

const zig: Part = { name: 'zig tests', command: [process.execPath, 'scripts/native.ts', '--test'] }
const build: Part = { name: 'build', command: [process.execPath, 'scripts/build.ts'] }

process.exit(
  await runParts([
    ...checks,
    zig,
    { ...bunTest('fuzz, longer', 'test/fuzz'), env: { VDUSE_NET_FUZZ_RINGS: '15000' } },
    build,
    preparing,
    bunTest('the executable', 'test/executable'),
    againstProgram,
    realFrontends,
    { ...bunTest('end to end, kernel 6.12', 'test/e2e'), env: { VDUSE_NET_TEST_KERNEL: '6.12' } },
    { ...bunTest('end to end, newest kernel', 'test/e2e'), env: { VDUSE_NET_TEST_KERNEL: 'newest' } },
  ]),
)
