import { describe, expect, test } from 'bun:test'
import { type Import, importsOf, sourceFiles, sourceOf, targetOf } from './sources.ts'

/** Each layer may import itself and what stands before it; those that share a rank may not import each other. */
const ranks: Readonly<Record<string, number>> = {
  base: 0,
  abi: 1,
  sys: 2,
  memory: 3,
  virtqueue: 4,
  device: 5,
  'transport/vduse': 6,
  'transport/vhost-user': 6,
  tap: 6,
  channel: 7,
  dataplane: 8,
  control: 9,
  card: 10,
  admin: 11,
  cli: 11,
  main: 12,
}

const layerOf = (file: string): string => {
  const parts = file.split('/')
  if (parts.length === 1) return 'main'
  return parts[0] === 'transport' ? `transport/${parts[1]}` : parts[0]!
}

/** What is wrong with an import, or null. */
const fault = (entry: Import): string | null => {
  const { from, specifier } = entry
  if (specifier === 'bun:ffi' && layerOf(from) !== 'sys') return 'only src/sys may import bun:ffi'
  const target = targetOf(entry)
  if (target === null) return null
  if (target.startsWith('..'))
    return target.startsWith('../build/') || target === '../package.json' ? null : 'leaves src'
  const [here, there] = [layerOf(from), layerOf(target)]
  const [hereRank, thereRank] = [ranks[here], ranks[there]]
  if (hereRank === undefined || thereRank === undefined) return `no rule for ${here} or ${there}`
  if (here === there || thereRank < hereRank) return null
  return `${here} must not import ${there}`
}

describe('imports go one way', () => {
  test('every layer has files', () => {
    expect(new Set(sourceFiles.map(layerOf))).toEqual(new Set(Object.keys(ranks)))
  })

  test('no file of src breaks the order', () => {
    const faults = sourceFiles.flatMap(importsOf).flatMap((entry) => {
      const why = fault(entry)
      return why === null ? [] : [`${entry.from} imports ${entry.specifier}: ${why}`]
    })
    expect(faults).toEqual([])
  })

  test('the rule finds a wrong import', () => {
    expect(fault({ from: 'virtqueue/split.ts', specifier: '../device/tx.ts' })).toBe('virtqueue must not import device')
    expect(fault({ from: 'tap/tap.ts', specifier: '../transport/vduse/bind.ts' })).toContain('must not import')
    expect(fault({ from: 'device/tx.ts', specifier: 'bun:ffi' })).toContain('bun:ffi')
    expect(fault({ from: 'device/tx.ts', specifier: '../virtqueue/split.ts' })).toBeNull()
  })

  test('only main.ts ends the process, and what its first import does with an error that nobody catches', () => {
    const ending = sourceFiles.filter((file) => sourceOf(file).includes('process.exit('))
    expect(ending).toEqual(['cli/uncaught.ts', 'main.ts'])
  })
})
