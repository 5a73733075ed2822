import { describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'

type Package = {
  readonly dependencies?: Record<string, string>
  readonly optionalDependencies?: Record<string, string>
  readonly resolved?: string
}

const lock = JSON.parse(readFileSync(resolve(import.meta.dir, '../../package-lock.json'), 'utf8')) as {
  packages: Record<string, Package>
}
const paths = Object.keys(lock.packages)

/** Where a package that is wanted at `path` may be: below it, or beside one of those that it is below. */
const isLocked = (path: string, name: string): boolean => {
  for (let at = path; ; at = at.slice(0, Math.max(0, at.lastIndexOf('node_modules/') - 1))) {
    if (paths.includes(at === '' ? `node_modules/${name}` : `${at}/node_modules/${name}`)) return true
    if (at === '') return false
  }
}

describe('package-lock.json', () => {
  test('has every package that one of it names, for other platforms, too: npm ci wants that', () => {
    const missing = Object.entries(lock.packages).flatMap(([path, { dependencies, optionalDependencies }]) =>
      Object.keys({ ...dependencies, ...optionalDependencies })
        .filter((name) => !isLocked(path, name))
        .map((name) => `${name}, of ${path}`),
    )
    expect(missing).toEqual([])
  })

  test('names no registry but the public one', () => {
    const hosts = Object.values(lock.packages).flatMap(({ resolved }) =>
      resolved === undefined ? [] : [new URL(resolved).host],
    )
    expect(hosts.filter((host) => host !== 'registry.npmjs.org')).toEqual([])
  })
})
