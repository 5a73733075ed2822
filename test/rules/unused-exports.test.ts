import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Glob } from 'bun'
import { root } from './sources.ts'

/** Every file that may import one of src. */
const files = [...new Glob('{src,test,scripts,bench}/**/*.ts').scanSync(root)].sort()
const textOf = (file: string): string => readFileSync(join(root, file), 'utf8')

/** Values that a file exports. A type that is part of a signature need not be named by anybody. */
const exportsOf = (text: string): string[] =>
  [...text.matchAll(/^export (?:abstract )?(?:const|class|function|let) (\w+)/gm)].map((match) => match[1]!)

const wordsOf = (text: string): ReadonlySet<string> => new Set(text.match(/\w+/g))

/** Exports of src that no other file names, as `file: name`. Those of src/abi repeat headers, which are to be whole. */
const unused = (texts: ReadonlyMap<string, string>): string[] => {
  const users = new Map<string, number>()
  for (const text of texts.values()) for (const word of wordsOf(text)) users.set(word, (users.get(word) ?? 0) + 1)
  return [...texts]
    .filter(([file]) => file.startsWith('src/') && !file.startsWith('src/abi/'))
    .flatMap(([file, text]) =>
      exportsOf(text)
        .filter((name) => users.get(name) === 1)
        .map((name) => `${file}: ${name}`),
    )
}

test('every value that src exports is named by another file', () => {
  expect(unused(new Map(files.map((file) => [file, textOf(file)])))).toEqual([])
})

test('the rule finds an export that nobody names', () => {
  const texts = new Map([
    ['src/a.ts', 'export const used = 1\nexport class Unused {}\nexport type Shape = number\n'],
    ['test/a.test.ts', "import { used } from '../src/a.ts'\nused"],
  ])
  expect(unused(texts)).toEqual(['src/a.ts: Unused'])
})
