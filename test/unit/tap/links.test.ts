import { describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import {
  IFF_UP,
  IFINFOMSG,
  IFLA_IFNAME,
  IFLA_MTU,
  RTM_DELLINK,
  RTM_GETLINK,
  RTM_NEWLINK,
} from '../../../src/abi/rtnetlink.ts'
import { encodeAttributes, type NetlinkMessage, text, u32 } from '../../../src/sys/netlink-message.ts'
import { NetlinkError, type NetlinkRequester } from '../../../src/sys/netlink-socket.ts'
import { getLink, linkIndexOf, parseLink, setLink } from '../../../src/tap/links.ts'

const AF_UNSPEC = 0
const AF_BRIDGE = 7

const linkMessage = (
  type: number,
  family: number,
  index: number,
  attributes: Uint8Array = new Uint8Array(0),
): NetlinkMessage => {
  const body = new Uint8Array(IFINFOMSG.sizeBytes + attributes.length)
  body[IFINFOMSG.ifi_family] = family
  new DataView(body.buffer).setInt32(IFINFOMSG.ifi_index, index, true)
  body.set(attributes, IFINFOMSG.sizeBytes)
  return { type, flags: 0, sequence: 0, body }
}

describe('which interface a message is about', () => {
  test('the one with its index', () => {
    expect(linkIndexOf(linkMessage(RTM_NEWLINK, AF_UNSPEC, 7))).toBe(7)
  })

  test("none, when a bridge speaks of its port: its RTM_DELLINK is not the port's end", () => {
    expect(linkIndexOf(linkMessage(RTM_DELLINK, AF_BRIDGE, 7))).toBe(0)
  })

  test('none, when it is cut short', () => {
    const { body, ...rest } = linkMessage(RTM_NEWLINK, AF_UNSPEC, 7)
    expect(linkIndexOf({ ...rest, body: body.subarray(0, IFINFOMSG.sizeBytes - 1) })).toBe(0)
  })
})

test('a kernel that tells only name and MTU is enough', () => {
  const attributes = encodeAttributes([
    [IFLA_IFNAME, text('tap0')],
    [IFLA_MTU, u32(1500)],
  ])
  expect(parseLink(linkMessage(RTM_NEWLINK, AF_UNSPEC, 7, attributes))).toEqual({
    index: 7,
    name: 'tap0',
    address: new Uint8Array(0),
    up: false,
    carrier: false,
    mtu: 1500,
    mtuMin: 0,
    mtuMax: 65535,
    master: 0,
    kind: '',
    tun: null,
  })
})

describe('requests', () => {
  /** Remembers the request and answers like the kernel. */
  const kernel = (answer: () => NetlinkMessage[]) => {
    const requests: { type: number; body: Uint8Array }[] = []
    const netlink: NetlinkRequester = {
      request: (type, parts) => {
        requests.push({ type, body: Uint8Array.from(parts.flatMap((part) => [...part])) })
        return answer()
      },
    }
    return { requests, netlink }
  }
  const word = (body: Uint8Array, at: number) => new DataView(body.buffer).getUint32(at, true)

  test('up and down change that flag only', () => {
    const { requests, netlink } = kernel(() => [])
    setLink(netlink, 7, { up: true })
    setLink(netlink, 7, { up: false })
    setLink(netlink, 7, { mtu: 1400 })
    expect(
      requests.map(({ body }) => [
        word(body, IFINFOMSG.ifi_index),
        word(body, IFINFOMSG.ifi_flags),
        word(body, IFINFOMSG.ifi_change),
      ]),
    ).toEqual([
      [7, IFF_UP, IFF_UP],
      [7, 0, IFF_UP],
      [7, 0, 0],
    ])
  })

  test('no such interface is an answer, another refusal is not', () => {
    const missing = kernel(() => {
      throw new NetlinkError(constants.errno.ENODEV, '')
    })
    expect(getLink(missing.netlink, 'tap0')).toBeNull()
    expect(missing.requests.map(({ type }) => type)).toEqual([RTM_GETLINK])
    const forbidden = kernel(() => {
      throw new NetlinkError(constants.errno.EPERM, '')
    })
    expect(() => getLink(forbidden.netlink, 7)).toThrow('EPERM')
  })
})
