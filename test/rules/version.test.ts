import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { buildInfo } from '../../src/base/build-info.ts'

const root = resolve(import.meta.dir, '../..')
const text = (file: string): string => readFileSync(join(root, file), 'utf8')

test('package.json, its lock file, the program and the changelog name one version', () => {
  const { version } = JSON.parse(text('package.json')) as { version: string }
  expect(version).toMatch(/^\d+\.\d+\.\d+$/)
  const lock = JSON.parse(text('package-lock.json')) as {
    version: string
    packages: Record<string, { version: string }>
  }
  const { stdout } = Bun.spawnSync([process.execPath, join(root, 'src/main.ts'), '--version'])
  const [unreleased, newest] = [...text('CHANGELOG.md').matchAll(/^## \[([^\]]+)\](?: - \d{4}-\d\d-\d\d)?$/gm)]
  expect(unreleased?.[1]).toBe('Unreleased')
  expect({
    lock: lock.version,
    lockedPackage: lock.packages['']?.version,
    build: buildInfo.version,
    program: stdout.toString(),
    changelog: newest?.[1],
  }).toEqual({ lock: version, lockedPackage: version, build: version, program: `${version}\n`, changelog: version })
})
