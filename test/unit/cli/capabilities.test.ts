import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { capabilities } from '../../../src/cli/capabilities.ts'
import { read } from './fake-host.ts'

const root = resolve(import.meta.dir, '../../..')

test('a back-end of type net tells just that, as its file for QEMU does', () => {
  const backend = JSON.parse(readFileSync(resolve(root, 'deploy/qemu/50-vduse-net.json'), 'utf8')) as unknown
  expect(backend).toEqual({ description: expect.any(String), type: 'net', binary: expect.stringMatching(/^\//) })
  expect(capabilities).toEqual({ type: 'net' })
})

test('conformance 56: --print-capabilities ignores everything else, right or wrong', async () => {
  for (const words of [
    [],
    ['--nonsense', 'word', '--mtu', 'x'],
    ['--tap', 'tap0'],
    ['--socket-path', '/nowhere/at/all', '--fd', '9'],
  ]) {
    for (const command of [
      [...words, '--print-capabilities'],
      ['--print-capabilities', ...words],
    ]) {
      const { exitCode, out, message } = await read(command, { files: {} })
      expect({ exitCode, message, said: JSON.parse(out) }).toEqual({ exitCode: 0, message: '', said: { type: 'net' } })
    }
  }
})
