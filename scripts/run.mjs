// Runs a TypeScript script of this project with Bun, on a machine where nothing is installed yet. Plain Node.
//
//   node scripts/run.mjs [--for=PURPOSE,...] SCRIPT.ts [ARGUMENT...]
//
// PURPOSE is one of scripts/setup.mjs; `lab` unless told.

import { spawn } from 'node:child_process'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bun, SetupError, setup } from './setup.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** Bun keeps what it has translated of TypeScript. That goes into the clone: a folder ~/.bun would stay behind. */
export const bunEnvironment = (environment) => ({
  BUN_RUNTIME_TRANSPILER_CACHE_PATH: join(root, 'build/transpiled'),
  ...environment,
})

/** Sets up for the purposes, then runs the words with Bun and ends as they end. */
export const runScript = async (purposes, command) => {
  try {
    await setup(purposes)
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    process.stderr.write(`setup: ${error.message}\n`)
    process.exit(1)
  }

  const child = spawn(bun, command, { stdio: 'inherit', env: bunEnvironment(process.env) })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    // A terminal sends SIGINT to the script as well, and a second one would mean "at once".
    process.on(signal, () => (signal === 'SIGINT' && process.stdin.isTTY ? undefined : child.kill(signal)))
  }
  child.on('error', (error) => {
    process.stderr.write(`${bun}: ${error.message}\n`)
    process.exit(1)
  })
  child.on('exit', (code, signal) => process.exit(code ?? 128 + constants.signals[signal]))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [first = '', ...rest] = process.argv.slice(2)
  const purposes = first.startsWith('--for=') ? first.slice('--for='.length).split(',') : ['lab']
  const command = first.startsWith('--for=') ? rest : [first, ...rest]
  if (!command[0]) {
    process.stderr.write('usage: node scripts/run.mjs [--for=PURPOSE,...] SCRIPT.ts [ARGUMENT...]\n')
    process.exit(2)
  }
  await runScript(
    purposes.filter((purpose) => purpose !== ''),
    command,
  )
}
