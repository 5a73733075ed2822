import { type Part, preparing, realFrontends, runParts } from './parts.ts'

const build: Part = { name: 'build', command: [process.execPath, 'scripts/build.ts'] }

process.exit(await runParts([build, preparing, realFrontends]))
