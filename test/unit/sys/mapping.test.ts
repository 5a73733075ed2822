import { describe, expect, test } from 'bun:test'
import { readSync } from 'node:fs'
import { resolve } from 'node:path'
import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { native } from '../../../src/sys/native.ts'
import { ScratchFile } from '../../support/scratch-file.ts'

const PAGE = 4096
const fixture = (name: string): string => resolve(import.meta.dir, '../../support', name)

describe('OwnedMapping', () => {
  test('shares its bytes with the file', () => {
    using file = new ScratchFile(3 * PAGE)
    using mapping = new OwnedMapping(file.fd, 2 * PAGE, PAGE)
    expect(mapping.lengthBytes).toBe(2 * PAGE)
    new Uint8Array(mapping.buffer(PAGE, PAGE))[7] = 42
    const byte = new Uint8Array(1)
    readSync(file.fd, byte, 0, 1, 2 * PAGE + 7)
    expect(byte[0]).toBe(42)
  })

  test('gives no view outside of itself', () => {
    using file = new ScratchFile(PAGE)
    using mapping = new OwnedMapping(file.fd, PAGE)
    for (const [offset, length] of [
      [-1, 1],
      [0, PAGE + 1],
      [PAGE, 1],
      [1, PAGE],
      [0, 0],
    ] as const) {
      expect(() => mapping.buffer(offset, length), `${offset}+${length}`).toThrow('mapping')
    }
  })

  test('detaches its views and unmaps when disposed of, once', () => {
    using file = new ScratchFile(PAGE)
    const mapping = new OwnedMapping(file.fd, PAGE)
    const kept = mapping.buffer(0, PAGE)
    const given = mapping.buffer(0, PAGE)
    const moved = given.transfer()
    const view = new Uint32Array(kept)
    mapping[Symbol.dispose]()
    mapping[Symbol.dispose]()
    expect(kept.detached).toBe(true)
    expect(view.length).toBe(0)
    expect(view[0]).toBeUndefined()
    expect(() => mapping.buffer(0, 1)).toThrow('gone')
    // Whoever moved a view away has it: the bytes are not readable any more, its length still is.
    expect(moved.byteLength).toBe(PAGE)
  })

  test('throws the errno of a mapping that cannot be', () => {
    expect(() => new OwnedMapping(-1, PAGE)).toThrow('mmap: EBADF')
    using file = new ScratchFile(PAGE)
    expect(() => new OwnedMapping(file.fd, PAGE, 1)).toThrow('mmap: EINVAL')
  })

  test('gives its guard slot back', () => {
    using file = new ScratchFile(PAGE)
    for (let i = 0; i < 3000; i++) new OwnedMapping(file.fd, PAGE)[Symbol.dispose]()
  })
})

describe('the guard', () => {
  test('reads zeroes where the file was cut short, and counts pages', () => {
    using file = new ScratchFile(4 * PAGE)
    using mapping = new OwnedMapping(file.fd, 4 * PAGE)
    const bytes = new Uint8Array(mapping.buffer(0, 4 * PAGE)).fill(7)
    expect(mapping.guardHits()).toBe(0)
    file.truncate(PAGE)
    expect(bytes[0]).toBe(7)
    expect(mapping.guardHits()).toBe(0)
    expect(bytes[PAGE + 1]).toBe(0)
    expect(mapping.guardHits()).toBe(1)
    expect(Atomics.load(new Uint16Array(bytes.buffer), PAGE)).toBe(0)
    expect(mapping.guardHits()).toBe(2)
    bytes[3 * PAGE] = 5
    expect(bytes[3 * PAGE]).toBe(5)
    expect(mapping.guardHits()).toBe(3)
  })

  test('still stands after JavaScriptCore has made a WebAssembly memory', async () => {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 10 })
    await WebAssembly.compile(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0))
    memory.grow(1)
    using file = new ScratchFile(PAGE)
    using mapping = new OwnedMapping(file.fd, PAGE)
    const words = new Uint32Array(mapping.buffer(0, PAGE)).fill(7)
    file.truncate(0)
    expect(words[0]).toBe(0)
    expect(mapping.guardHits()).toBe(1)
  })

  test('works in a Worker, with one table for the process', async () => {
    const worker = new Worker(fixture('guard-worker.ts'))
    try {
      const { slot, sum, hits } = await new Promise<{ slot: number; sum: number; hits: number }>((done, fail) => {
        worker.onmessage = (event) => done(event.data)
        worker.onerror = (event) => fail(new Error(event.message))
      })
      expect({ sum, hits }).toEqual({ sum: 0, hits: 2 })
      expect(native.vn_guard_hits(slot)).toBe(2)
    } finally {
      worker.terminate()
    }
  })

  test.each(['unguarded', 'removed'])('leaves a bus error that is not ours to Bun: %s', async (kind) => {
    expect(await dieOf(kind)).toEqual({ stdout: 'before\n', reported: true, signal: 'SIGBUS' })
  })

  test('leaves a SIGBUS that somebody sent to Bun, who dies of it without a word', async () => {
    expect(await dieOf('sent')).toEqual({ stdout: 'before\n', reported: false, signal: 'SIGBUS' })
  })
})

const dieOf = async (kind: string) => {
  const child = Bun.spawn([process.execPath, fixture('bus-error.ts'), kind], { stdout: 'pipe', stderr: 'pipe' })
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()])
  await child.exited
  return { stdout, reported: stderr.includes('Bus error at address'), signal: child.signalCode }
}
