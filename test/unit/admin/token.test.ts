import { afterAll, beforeAll, expect, test } from 'bun:test'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readToken } from '../../../src/admin/token.ts'
import { EXIT } from '../../../src/base/errors.ts'
import { refusal } from '../../support/refusal.ts'

const TOKEN = '0123456789abcdef'.repeat(4)

let folder = ''
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'vduse-net-token-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

const file = (text: string, mode = 0o600): string => {
  const path = join(folder, 'token')
  writeFileSync(path, text)
  chmodSync(path, mode)
  return path
}

test.each([
  ['missing', () => join(folder, 'none'), 'ENOENT', 'openssl rand -hex 32'],
  ['a folder', () => folder, 'not a file', 'openssl rand -hex 32'],
  ['open to the group', () => file(TOKEN, 0o640), 'others may read it (mode 640)', 'chmod 600 '],
  ['open to others', () => file(TOKEN, 0o604), 'others may read it (mode 604)', 'chmod 600 '],
  ['a digit too short', () => file(TOKEN.slice(1)), 'a token of 252 bits, fewer than 256', 'openssl rand -hex 32'],
  ['base64 too short', () => file(`g${'A'.repeat(41)}`), 'a token of 252 bits, fewer than 256', 'openssl rand -hex 32'],
  ['empty', () => file(''), 'neither hexadecimal nor base64', 'openssl rand -hex 32'],
  ['two tokens', () => file(`${TOKEN} ${TOKEN}`), 'neither hexadecimal nor base64', 'openssl rand -hex 32'],
  ['too long', () => file('a'.repeat(5000)), 'larger than 4096 bytes', 'openssl rand -hex 32'],
])('a token file that is %s is refused, in the name of its option', (_, make, why, hint) => {
  const path = make()
  const error = refusal(() => readToken(path))
  expect(error.message).toStartWith(`--admin-token-file ${path}: ${why}`)
  expect(error.hint).toContain(hint)
  expect(error.exitCode).toBe(EXIT.usage)
})

test('a hexadecimal token will do, and a base64 one of 32 bytes', () => {
  expect(readToken(file(`${TOKEN}\n`))).toBe(TOKEN)
  const base64 = Buffer.alloc(32, 0xa7).toString('base64')
  expect(readToken(file(`${base64}\n`, 0o400))).toBe(base64)
})
