import { expect, test } from 'bun:test'
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { temporaryFolder } from '../../../scripts/lab/temporary.ts'

const runner = resolve(import.meta.dir, '../../../scripts/run.mjs')

test('a script that Bun keeps translated leaves nothing in the home of the user', () => {
  using folder = temporaryFolder(tmpdir(), 'vduse-net-test-run-')
  const home = join(folder.path, 'home')
  mkdirSync(home)
  const script = join(folder.path, 'script.ts')
  // Bun keeps what is larger than 50 kB.
  const words = Array.from({ length: 8000 }, (_, index) => `export const value${index}: number = ${index}`)
  writeFileSync(script, [...words, 'console.log(value7)'].join('\n'))
  const { PATH = '' } = process.env
  const child = Bun.spawnSync([Bun.which('node')!, runner, '--for=', script], { env: { PATH, HOME: home } })
  expect(child.stdout.toString() + child.stderr.toString()).toBe('7\n')
  expect(readdirSync(home)).toEqual([])
})
