import { bunTest, type Part, runParts } from './parts.ts'

const build: Part = { name: 'build', command: [process.execPath, 'scripts/build.ts'] }

process.exit(await runParts([build, bunTest('real vhost-user front-ends', 'test/frontends')]))
