import { describe, expect, test } from 'bun:test'
import { VDUSE_DRAWING, VHOST_USER_DRAWING } from '../../../scripts/demo/drawings.ts'
import { wrap } from '../../../scripts/demo/layout.ts'
import { Random } from '../../support/random.ts'

describe('lines of the demonstration', () => {
  test('what fits stays as it is, a table with its spaces', () => {
    expect(wrap('a   b     c', 11)).toEqual(['a   b     c'])
    expect(wrap('', 10)).toEqual([''])
    expect(wrap('  indented', 10)).toEqual(['  indented'])
  })

  test('what does not is broken at a space, and goes on indented', () => {
    expect(wrap('one two three four', 9)).toEqual(['one two', '  three', '  four'])
    expect(wrap('one two three four', 9, 0)).toEqual(['one two', 'three', 'four'])
    expect(wrap('a-single-long-word', 9)).toEqual(['a-single-long-word'])
    expect(wrap('x device,mac=1,rx=1024,tx=1024', 13)).toEqual([
      'x',
      '  device,',
      '  mac=1,',
      '  rx=1024,',
      '  tx=1024',
    ])
    expect(wrap('a-single-long-word x', 9)).toEqual(['a-single-long-word', '  x'])
  })

  test('a table that is too wide loses spaces before it is broken', () => {
    expect(wrap('0.00-4.01   sec     receiver', 26)).toEqual(['0.00-4.01  sec  receiver'])
  })

  test('no word is lost, and no line is wider unless a word is', () => {
    const random = new Random(0x80c01)
    for (let round = 0; round < 2000; round++) {
      const words = Array.from({ length: 1 + random.below(20) }, () => 'x'.repeat(1 + random.below(30)))
      const width = 20 + random.below(60)
      const lines = wrap(words.join(' '), width)
      expect(lines.join(' ').trim().split(/ +/)).toEqual(words)
      for (const line of lines) if (line.trim().includes(' ')) expect(line.length).toBeLessThanOrEqual(width)
    }
  })

  test('the drawings fit beside an indentation of four, and have one width', () => {
    for (const drawing of [VDUSE_DRAWING, VHOST_USER_DRAWING]) {
      const widths = new Set(drawing.map((line) => line.length))
      expect(widths.size).toBe(1)
      expect(Math.max(...widths)).toBeLessThanOrEqual(76)
    }
  })
})
