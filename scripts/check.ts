import { checks, runParts } from './parts.ts'

process.exit(await runParts(checks))
