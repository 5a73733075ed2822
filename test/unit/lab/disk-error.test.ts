import { expect, test } from 'bun:test'
import { writeFileSync } from 'node:fs'
import { LabError } from '../../../scripts/lab/command.ts'
import { asLabError } from '../../../scripts/lab/disk-error.ts'

const thrown = (act: () => unknown): unknown => {
  try {
    act()
  } catch (error) {
    return error
  }
  return null
}

test('a full disk is said with what can be put elsewhere', () => {
  const error = asLabError(thrown(() => writeFileSync('/dev/full', 'x')))
  expect(error?.message).toStartWith('no space left on the disk')
  expect(error?.message).toContain('\nhint: VDUSE_NET_CACHE=FOLDER ')
})

test.each(['EACCES', 'EPERM', 'EROFS'])('a folder that may not be written is named: %s', (code) => {
  const error = asLabError(Object.assign(new Error('x'), { code, path: '/home/a/.cache' }))
  expect(error?.message).toStartWith(`/home/a/.cache: may not be written (${code})\nhint: `)
})

test('an error of ours stays what it is', () => {
  const known = new LabError('no such kernel')
  expect(asLabError(known)).toBe(known)
  expect(asLabError(new TypeError('x is undefined'))).toBeNull()
  expect(asLabError(Object.assign(new Error('x'), { code: 'ENOENT', path: '/a' }))).toBeNull()
})
