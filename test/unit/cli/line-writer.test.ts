import { describe, expect, test } from 'bun:test'
import type { LineSink } from '../../../src/cli/line-sink.ts'
import { LineWriter } from '../../../src/cli/line-writer.ts'
import { HANG_MS } from '../../support/patience.ts'

/** A reader that takes what a test lets it. */
class Reader implements LineSink {
  received = ''
  /** Bytes that it takes before it is full. */
  room = Number.POSITIVE_INFINITY
  gone = false
  failing = false
  lost = 0
  isIdle(): boolean {
    return true
  }
  isFailing(): boolean {
    return this.failing
  }
  lostLines(): number {
    return this.lost
  }
  [Symbol.dispose](): void {}
  write(bytes: Uint8Array): number {
    if (this.gone) throw Object.assign(new Error('EPIPE'), { code: 'EPIPE' })
    const taken = Math.min(this.room, bytes.length)
    this.room -= taken
    this.received += Buffer.from(bytes.subarray(0, taken)).toString()
    return taken
  }
}

const writerTo = (reader: Reader) => new LineWriter(reader, (dropped) => `dropped ${dropped}\n`)

describe('LineWriter', () => {
  test('writes at once while there is room', () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    writer.write('one\n')
    writer.write('två\n')
    expect(reader.received).toBe('one\ntvå\n')
  })

  test('keeps order and whole lines across a full pipe', () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    reader.room = 6
    for (const line of ['one\n', 'two\n', 'three\n']) writer.write(line)
    expect(reader.received).toBe('one\ntw')
    reader.room = 1
    writer.flush()
    expect(reader.received).toBe('one\ntwo')
    reader.room = Number.POSITIVE_INFINITY
    writer.flush()
    expect(reader.received).toBe('one\ntwo\nthree\n')
    expect(writer.droppedLines).toBe(0)
  })

  test('tries again by itself', async () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    reader.room = 0
    writer.write('late\n')
    reader.room = Number.POSITIVE_INFINITY
    const deadline = performance.now() + HANG_MS
    while (reader.received === '' && performance.now() < deadline) await new Promise((resolve) => setImmediate(resolve))
    expect(reader.received).toBe('late\n')
  })

  test('a reader that never reads costs bounded memory, and the lost lines are counted and told', () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    reader.room = 0
    const line = `${'x'.repeat(1023)}\n`
    for (let sent = 0; sent < 1000; sent++) writer.write(line)
    expect(writer.droppedLines).toBe(1000 - 256)
    reader.room = Number.POSITIVE_INFINITY
    writer.flush()
    expect(reader.received).toBe(`${line.repeat(256)}dropped 744\n`)
    writer.write('after\n')
    expect(reader.received).toEndWith('dropped 744\nafter\n')
  })

  test('a reader that is gone is no error, and its lines are counted', () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    reader.gone = true
    writer.write('one\n')
    writer.write('two\n')
    expect(writer.droppedLines).toBe(2)
    reader.gone = false
    writer.write('three\n')
    expect(reader.received).toBe('three\ndropped 2\n')
  })

  test('lines that a full disk did not take are told once, as soon as it takes lines again', async () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    reader.lost = 3
    reader.failing = true
    writer.write('lost as well\n')
    await writer.finish(1000)
    expect(reader.received).toBe('lost as well\n')
    reader.failing = false
    writer.write('after\n')
    expect(reader.received).toEndWith('after\ndropped 3\n')
    await writer.finish(1000)
    expect(reader.received).toEndWith('after\ndropped 3\n')
    expect(writer.droppedLines).toBe(3)
  })

  test('the end waits for a reader who is slow, and for a stuck one no longer than it was told to', async () => {
    const reader = new Reader()
    const writer = writerTo(reader)
    reader.room = 0
    writer.write('late\n')
    const finished = writer.finish(60_000)
    reader.room = Number.POSITIVE_INFINITY
    await finished
    expect(reader.received).toBe('late\n')
    reader.room = 0
    writer.write('never\n')
    const began = performance.now()
    await writer.finish(50)
    expect(performance.now() - began).toBeGreaterThan(40)
    expect(reader.received).toBe('late\n')
  })
})
