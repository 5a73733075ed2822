import { describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root, sourceFiles, sourceOf } from './sources.ts'

const FILE_LINES_MAX = 400
const FUNCTION_LINES_MAX = 70
const COLUMNS_MAX = 120

/** Text that people write, of every kind that the project has. */
const written = /\.(ts|mjs|zig|md|h|c|yml|sh)$|(^|\/)Dockerfile$/

/** Files that are kept in git, those apart that a program writes: results of benchmarks. */
const keptFiles = (): string[] => {
  const { stdout } = Bun.spawnSync(['git', 'ls-files'], { cwd: root })
  return stdout
    .toString()
    .split('\n')
    .filter((file) => written.test(file) && !file.startsWith('bench/results/'))
}

const indentOf = (line: string): number => line.length - line.trimStart().length

/**
 * The line begins a function: a method, a function or an arrow with a body. The formatter has the last word on how that
 * looks.
 */
const beginsFunction = (line: string): boolean =>
  /(\)|=>|\)?: [^=;]+) \{$/.test(line) && !/^\s*(\} )?(if|else|for|while|switch|catch|do|case|try)\b/.test(line)

/** Functions of a text: the first line of each, and how many lines it has. It ends where its indentation comes back. */
const functionsOf = (text: string): { readonly line: number; readonly lines: number }[] => {
  const lines = text.split('\n')
  return lines.flatMap((line, index) => {
    if (!beginsFunction(line)) return []
    const indent = indentOf(line)
    const length = lines
      .slice(index)
      .findIndex((end, offset) => offset > 0 && end[indent] === '}' && indentOf(end) === indent)
    return length < 0 ? [] : [{ line: index + 1, lines: length + 1 }]
  })
}

const longFunctions = (file: string, text: string): string[] =>
  functionsOf(text)
    .filter(({ lines }) => lines > FUNCTION_LINES_MAX)
    .map(({ line, lines }) => `${file}:${line}: a function of ${lines} lines`)

/** A row of a table cannot be broken, and neither can an address. */
const mayBeLong = (file: string, line: string): boolean =>
  file.endsWith('.md') && (line.trimStart().startsWith('|') || /^\S*https?:\/\/\S+$/.test(line.trim()))

const longLines = (file: string, text: string): string[] =>
  text
    .split('\n')
    .flatMap((line, index) =>
      [...line].length > COLUMNS_MAX && !mayBeLong(file, line)
        ? [`${file}:${index + 1}: ${[...line].length} columns`]
        : [],
    )

describe('sizes', () => {
  test(`no file of src has more than ${FILE_LINES_MAX} lines`, () => {
    const long = sourceFiles.filter((file) => sourceOf(file).trimEnd().split('\n').length > FILE_LINES_MAX)
    expect(long).toEqual([])
  })

  test(`no function of src has more than ${FUNCTION_LINES_MAX} lines`, () => {
    expect(sourceFiles.flatMap((file) => longFunctions(file, sourceOf(file)))).toEqual([])
  })

  test(`no line has more than ${COLUMNS_MAX} columns`, () => {
    expect(keptFiles().flatMap((file) => longLines(file, readFileSync(join(root, file), 'utf8')))).toEqual([])
  })

  test('the rules see functions, and lines that are too long', () => {
    const body = '    more()\n'
    const method = `class A {\n  run(a: number): void {\n${body.repeat(69)}  }\n}\n`
    expect(longFunctions('a.ts', method)).toEqual(['a.ts:2: a function of 71 lines'])
    expect(longFunctions('a.ts', method.replace(body, ''))).toEqual([])
    const arrow = `const f = async ({ a }: B): Promise<C> => {\n${body.repeat(69)}}\n`
    expect(longFunctions('a.ts', arrow)).toEqual(['a.ts:1: a function of 71 lines'])
    expect(longFunctions('a.ts', `const table = {\n${body.repeat(100)}}\n`)).toEqual([])
    expect(longFunctions('a.ts', `  if (a) {\n${body.repeat(100)}  }\n`)).toEqual([])
    expect(longLines('a.ts', `${'x'.repeat(120)}\n${'x'.repeat(121)}\n`)).toEqual(['a.ts:2: 121 columns'])
    expect(
      longLines('a.md', `| ${'x'.repeat(121)} |\nhttps://${'x'.repeat(121)}\nsee ${'x'.repeat(121)}`),
    ).toHaveLength(1)
    // A character of several bytes is one column.
    expect(longLines('a.md', 'é'.repeat(120))).toEqual([])
  })
})
