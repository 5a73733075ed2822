import { expect, test } from 'bun:test'
import { deriveMac, deriveTapMac, formatMac, parseMac, refuseMac } from '../../../src/base/mac.ts'

test.each(['02:00:5e:10:00:01', '02-00-5E-10-00-01', '0200.5e10.0001', '02005E100001', '2:0:5e:10:0:1'])(
  '%p is the same address',
  (text) => {
    const octets = parseMac(text)
    expect(octets && formatMac(octets)).toBe('02:00:5e:10:00:01')
  },
)

test.each([
  '',
  '02:00:5e:10:00',
  '02:00:5e:10:00:01:02',
  '02:00:5e:10:00:0g',
  '02:00-5e:10:00:01',
  '02:00:5e:10:00:001',
  ' 02:00:5e:10:00:01',
  '02:00:5e:10:00:01\n',
  '0200.5e10.00011',
  '::::: ',
  '٠٢:00:5e:10:00:01',
])('%p is no address', (text) => {
  expect(parseMac(text)).toBeNull()
})

test('a card has neither the zero address nor one of a group', () => {
  expect(refuseMac(new Uint8Array(6))).toContain('zero')
  expect(refuseMac(Uint8Array.of(1, 0, 0x5e, 0, 0, 1))).toContain('multicast')
  expect(refuseMac(new Uint8Array(6).fill(255))).toContain('multicast')
  expect(refuseMac(Uint8Array.of(0x52, 0x54, 0, 0, 0, 1))).toBeNull()
})

test('a derived address is local and unicast, stays, and differs by card and by host', () => {
  const seen = new Set<string>()
  for (let host = 0; host < 20; host++) {
    for (let card = 0; card < 20; card++) {
      const mac = deriveMac(`host${host}`, `tap${card}`)
      const octets = parseMac(mac)
      if (octets === null) throw new Error(`${mac} is not canonical`)
      expect(refuseMac(octets)).toBeNull()
      expect((octets[0] ?? 0) & 0x02).toBe(0x02)
      seen.add(mac)
    }
  }
  expect(seen.size).toBe(400)
  expect(deriveMac('host0', 'tap0')).toBe(deriveMac('host0', 'tap0'))
})

test('that of a TAP begins with fe, stays, differs by interface and by host, and is not the card’s', () => {
  const seen = new Set<string>()
  for (const host of ['host0', 'host1']) {
    for (const ifname of ['tap0', 'tap1']) {
      const mac = deriveTapMac(host, ifname)
      expect(mac).toMatch(/^fe(:[0-9a-f]{2}){5}$/)
      expect(deriveTapMac(host, ifname)).toBe(mac)
      expect(mac.slice(3)).not.toBe(deriveMac(host, ifname).slice(3))
      seen.add(mac)
    }
  }
  expect(seen.size).toBe(4)
})
