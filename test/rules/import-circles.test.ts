import { describe, expect, test } from 'bun:test'
import { importsOf, sourceFiles, targetOf } from './sources.ts'

/** What each file imports, by file. */
type Graph = ReadonlyMap<string, readonly string[]>

const ofSource = (): Graph =>
  new Map(
    sourceFiles.map((file) => [
      file,
      importsOf(file)
        .map(targetOf)
        .filter((target) => target !== null),
    ]),
  )

/** Ways from a file back to itself: one for each import that closes a circle. */
const circles = (graph: Graph): string[] => {
  const found: string[] = []
  const done = new Set<string>()
  const visit = (file: string, way: readonly string[]): void => {
    const at = way.indexOf(file)
    if (at >= 0) {
      found.push([...way.slice(at), file].join(' -> '))
      return
    }
    if (done.has(file)) return
    for (const target of graph.get(file) ?? []) visit(target, [...way, file])
    done.add(file)
  }
  for (const file of graph.keys()) visit(file, [])
  return found
}

describe('no files import each other in a circle', () => {
  test('in src', () => {
    expect(circles(ofSource())).toEqual([])
  })

  test('the rule finds a circle, of two files or of more, and of a file with itself', () => {
    const graph: Graph = new Map([
      ['main', ['a', 'd']],
      ['a', ['b']],
      ['b', ['a', 'c']],
      ['c', ['main']],
      ['d', ['d', 'e']],
      ['e', []],
    ])
    expect(circles(graph)).toEqual(['a -> b -> a', 'main -> a -> b -> c -> main', 'd -> d'])
  })

  test('the rule sees the imports that there are', () => {
    expect(ofSource().get('base/mac.ts')).toBeDefined()
    expect([...ofSource().values()].flat().length).toBeGreaterThan(300)
  })
})
