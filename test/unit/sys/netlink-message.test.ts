import { describe, expect, test } from 'bun:test'
import { NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_ERROR, NLMSGERR_ATTR_MSG } from '../../../src/abi/netlink.ts'
import {
  asText,
  asU8,
  asU16,
  asU32,
  asU64,
  decodeAttributes,
  decodeMessages,
  decodeResult,
  encodeAttributes,
  encodeMessage,
  text,
  u8,
  u16,
  u32,
} from '../../../src/sys/netlink-message.ts'

describe('attributes', () => {
  test('have the kernel layout: length, type, value, padding to four bytes', () => {
    expect([...encodeAttributes([[3, text('ab')]])]).toEqual([7, 0, 3, 0, 0x61, 0x62, 0, 0])
  })

  test('come back as they went, whatever their length', () => {
    const values = Array.from({ length: 20 }, (_, length) => Uint8Array.from({ length }, (_, i) => i + length))
    const decoded = decodeAttributes(encodeAttributes(values.map((value, type) => [type, value])))
    expect([...decoded]).toEqual(values.map((value, type) => [type, value]))
  })

  test('nested ones lose the flag in their type', () => {
    const nested = encodeAttributes([[1, u16(7)]])
    const decoded = decodeAttributes(encodeAttributes([[0x8000 | 18, nested]]))
    expect(asU16(decodeAttributes(decoded.get(18)).get(1))).toBe(7)
  })

  test('a length that is short, or reaches beyond the end, ends the list', () => {
    const good = encodeAttributes([[1, u32(1)]])
    for (const bad of [[0, 0, 2, 0], [3, 0, 2, 0], [9, 0, 2, 0, 1, 1, 1, 1], [4]]) {
      expect([...decodeAttributes(Uint8Array.from([...good, ...bad])).keys()]).toEqual([1])
    }
  })

  test('numbers and strings', () => {
    const bytes = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 0x88)
    expect(asU8(bytes)).toBe(0x01)
    expect(asU16(bytes)).toBe(0x0201)
    expect(asU32(bytes)).toBe(0x04030201)
    expect(asU64(bytes)).toBe(0x8807060504030201n)
    expect(asU64(bytes.subarray(0, 7))).toBeUndefined()
    expect(asU32(u8(1))).toBeUndefined()
    expect(asText(text('tap0'))).toBe('tap0')
    expect(asText(Uint8Array.of(0x61))).toBe('a')
    expect(asText(undefined)).toBeUndefined()
  })
})

describe('messages', () => {
  test('come back as they went, several in one datagram', () => {
    const datagram = Uint8Array.from([...encodeMessage(20, 5, 9, u32(1), text('ab')), ...encodeMessage(21, 0, 10)])
    const messages = decodeMessages(datagram)!
    expect(messages.map(({ type, flags, sequence, body }) => [type, flags, sequence, body.length])).toEqual([
      [20, 5, 9, 8],
      [21, 0, 10, 0],
    ])
  })

  test('one that is cut short spoils the datagram', () => {
    const datagram = encodeMessage(20, 5, 9, u32(1))
    for (let length = 1; length < datagram.length; length++) {
      expect(decodeMessages(datagram.subarray(0, length))).toBeNull()
    }
    const lying = datagram.slice()
    lying[0] = 15 // shorter than its own header
    expect(decodeMessages(lying)).toBeNull()
  })
})

describe('acknowledgements', () => {
  const EPERM = 1
  const errno = u32(-EPERM)
  const sentence = encodeAttributes([[NLMSGERR_ATTR_MSG, text('not you')]])
  const request = encodeMessage(16, 5, 1, text('a request of some length'))
  const acknowledge = (flags: number, ...parts: Uint8Array[]) =>
    decodeResult(decodeMessages(encodeMessage(NLMSG_ERROR, flags, 1, ...parts))![0]!, false)

  test('say success', () => {
    expect(acknowledge(0, u32(0), request.subarray(0, 16))).toEqual({ errno: 0, extack: '' })
  })

  test('say why, after the header of the request', () => {
    const flags = NLM_F_CAPPED | NLM_F_ACK_TLVS
    expect(acknowledge(flags, errno, request.subarray(0, 16), sentence)).toEqual({ errno: EPERM, extack: 'not you' })
  })

  test('say why, after the whole request', () => {
    expect(acknowledge(NLM_F_ACK_TLVS, errno, request, sentence)).toEqual({ errno: EPERM, extack: 'not you' })
  })

  test('need not say why, nor be whole', () => {
    expect(acknowledge(0, errno, request)).toEqual({ errno: EPERM, extack: '' })
    expect(acknowledge(NLM_F_ACK_TLVS, errno)).toEqual({ errno: EPERM, extack: '' })
    expect(acknowledge(NLM_F_ACK_TLVS, errno, request.subarray(0, 16))).toEqual({ errno: EPERM, extack: '' })
  })

  test('the end of a dump says the same without a request', () => {
    const [done] = decodeMessages(encodeMessage(3, NLM_F_ACK_TLVS, 1, errno, sentence))!
    expect(decodeResult(done!, true)).toEqual({ errno: EPERM, extack: 'not you' })
  })
})
