import { describe, expect, test } from 'bun:test'
import { closeSync, constants, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import { resolve } from 'node:path'
import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { native } from '../../../src/sys/native.ts'
import { HugePages, noHugePages } from '../../support/huge-pages.ts'
import { ScratchFile } from '../../support/scratch-file.ts'

const PAGE = 4096
class Descriptor implements Disposable {
  readonly fd: number
  constructor(fd: number) {
    this.fd = fd
  }
  [Symbol.dispose](): void {
    closeSync(this.fd)
  }
}

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
    expect(() => new OwnedMapping(-1, PAGE)).toThrow('fstatfs: EBADF')
    using directory = new Descriptor(openSync('/', constants.O_RDONLY))
    expect(() => new OwnedMapping(directory.fd, PAGE)).toThrow('mmap: EACCES')
  })

  test('begins anywhere in a page', () => {
    using file = new ScratchFile(3 * PAGE)
    writeSync(file.fd, new Uint8Array(2 * PAGE).fill(7), 0, 2 * PAGE, PAGE - 5)
    using mapping = new OwnedMapping(file.fd, 2 * PAGE, PAGE - 5)
    const bytes = new Uint8Array(mapping.buffer(0, 2 * PAGE))
    expect([bytes[0], bytes[2 * PAGE - 1]]).toEqual([7, 7])
    expect(() => mapping.buffer(0, 2 * PAGE + 1)).toThrow('mapping')
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

describe.skipIf(noHugePages !== null)(`memory in huge pages${noHugePages === null ? '' : `: ${noHugePages}`}`, () => {
  const HUGE = 2 << 20

  test.each([
    [0, HUGE],
    [0, 2 * HUGE],
    [0, HUGE - PAGE],
    [PAGE, HUGE],
    [HUGE + 3 * PAGE, HUGE - 3 * PAGE],
    [2 * HUGE - 512, 1024],
    [3 * HUGE - PAGE, PAGE],
  ])('a region at %i of %i bytes is mapped, read, taken away and unmapped', (offset, length) => {
    using pages = new HugePages(4)
    for (let round = 0; round < 3; round++) {
      ftruncateSync(pages.fd, 4 * HUGE)
      const mapping = new OwnedMapping(pages.fd, length, offset)
      const bytes = new Uint8Array(mapping.buffer(0, length))
      bytes.fill(7)
      // Another mapping of the same bytes, as the front-end has one.
      using other = new OwnedMapping(pages.fd, length, offset)
      const others = new Uint8Array(other.buffer(0, length))
      expect([others[0], others[length - 1]]).toEqual([7, 7])
      expect(mapping.guardHits()).toBe(0)
      // Everything, or all but the first huge page.
      ftruncateSync(pages.fd, round === 2 ? HUGE : 0)
      const gone = round === 2 ? Math.min(length, Math.max(0, HUGE - offset)) : 0
      expect(bytes.subarray(gone).some((byte) => byte !== 0)).toBeFalse()
      expect(bytes.subarray(0, gone).every((byte) => byte === 7)).toBeTrue()
      const touched = Math.ceil((offset + length) / HUGE) - Math.floor((offset + gone) / HUGE)
      expect(mapping.guardHits()).toBe(gone === length ? 0 : touched)
      bytes.fill(3)
      mapping[Symbol.dispose]()
    }
  })
})
