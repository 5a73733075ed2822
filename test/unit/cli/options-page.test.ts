import { expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { settingKeys, settings } from '../../../src/cli/settings.ts'
import { TEST_MS } from '../../support/patience.ts'
import { read } from './fake-host.ts'

setDefaultTimeout(TEST_MS)

const page = readFileSync(join(resolve(import.meta.dir, '../../..'), 'docs/options.md'), 'utf8')

const longOptions = (text: string): string[] => text.match(/(?<![\w-])--[a-z][a-z-]+/g) ?? []

/** Long options in the first column of the page's tables. */
const onPage = (): Set<string> =>
  new Set(
    page
      .split('\n')
      .filter((line) => line.startsWith('|'))
      .flatMap((line) => longOptions(line.split('|')[1]!)),
  )

/** Long options of the program, those that help hides included. */
const inProgram = async (): Promise<Set<string>> => {
  const helps = await Promise.all([read(['--help']), read(['doctor', '--help'])])
  const listed = helps.flatMap(({ out }) => out.split('\n').filter((line) => /^ {2}-/.test(line)))
  const hidden = settingKeys.flatMap((key) => settings[key].flags as readonly string[])
  return new Set([...listed.map((line) => line.slice(0, 29)), ...hidden].flatMap(longOptions))
}

test('docs/options.md names each option of the program, and no other', async () => {
  const program = await inProgram()
  expect(program.size).toBeGreaterThan(30)
  expect([...onPage()].sort()).toEqual([...program].sort())
})

test('each variable of the environment is VDUSE_NET_ and the name of its option, as docs/options.md says', () => {
  for (const key of settingKeys) {
    const [name] = longOptions(String(settings[key].flags[0])).map((option) => option.replace(/^--(no-)?/, ''))
    expect(settings[key].env).toBe(`VDUSE_NET_${name!.toUpperCase().replaceAll('-', '_')}`)
  }
})
