import { expect, test } from 'bun:test'
import { formatListenAddress, parseListenAddress, SOCKET_PATH_MAX_BYTES } from '../../../src/base/listen-address.ts'

test.each([
  ['off', 'off'],
  ['unix:/run/x.sock', 'unix:/run/x.sock'],
  ['127.0.0.1:8080', '127.0.0.1:8080'],
  ['localhost:0', '127.0.0.1:0'],
  ['[::1]:65535', '[::1]:65535'],
])('%p is %p', (text, canonical) => {
  const address = parseListenAddress(text)
  if (typeof address === 'string') throw new Error(address)
  expect(formatListenAddress(address)).toBe(canonical)
  expect(parseListenAddress(canonical)).toEqual(address)
})

test.each([
  ['0.0.0.0:80', 'not loopback'],
  [':80', 'every address is not loopback'],
  ['[::]:80', 'not loopback'],
  ['192.168.0.1:80', 'not loopback'],
  ['127.0.0.2:80', 'not loopback'],
  ['[::ffff:127.0.0.1]:80', 'not loopback'],
  ['localhost.evil.example:80', 'not loopback'],
  ['127.1:80', 'not loopback'],
  ['127.0.0.1:65536', 'greater than 65535'],
  ['127.0.0.1', 'not HOST:PORT'],
  ['127.0.0.1:', 'not HOST:PORT'],
  ['::1:80', 'not HOST:PORT'],
  ['8080', 'not HOST:PORT'],
  ['http://127.0.0.1:80', 'not HOST:PORT'],
  ['', 'not HOST:PORT'],
  ['OFF', 'not HOST:PORT'],
  ['unix:', 'not absolute'],
  ['unix:run/x.sock', 'not absolute'],
  ['unix:/run/', 'names no file'],
  ['unix:/run/\0x', 'names no file'],
  [`unix:/${'a'.repeat(SOCKET_PATH_MAX_BYTES)}`, 'longer than'],
])('%p is refused: %p', (text, why) => {
  expect(parseListenAddress(text)).toContain(why)
})

test('the longest path leaves room for the temporary name', () => {
  const path = `/${'a'.repeat(SOCKET_PATH_MAX_BYTES - 1)}`
  expect(parseListenAddress(`unix:${path}`)).toEqual({ kind: 'unix', path })
  expect(`${path}.01234567`.length).toBe(107)
})
