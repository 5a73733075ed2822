import { describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import {
  CTRL_ATTR_FAMILY_ID,
  CTRL_ATTR_FAMILY_NAME,
  CTRL_CMD_GETFAMILY,
  GENL_ID_CTRL,
  GENLMSGHDR,
  NETLINK_GENERIC,
} from '../../../src/abi/netlink.ts'
import { asText, asU16, decodeAttributes, encodeAttributes, text } from '../../../src/sys/netlink-message.ts'
import { NetlinkError, NetlinkSocket } from '../../../src/sys/netlink-socket.ts'
import { thrown } from '../../support/refusal.ts'

const getFamily = Uint8Array.of(CTRL_CMD_GETFAMILY, 2, 0, 0)
const named = (name: string) => encodeAttributes([[CTRL_ATTR_FAMILY_NAME, text(name)]])
describe('a netlink socket to the real kernel', () => {
  test('gets an answer', () => {
    using socket = new NetlinkSocket(NETLINK_GENERIC)
    const [answer, ...more] = socket.request(GENL_ID_CTRL, [getFamily, named('nlctrl')])
    expect(more).toEqual([])
    const attributes = decodeAttributes(answer!.body.subarray(GENLMSGHDR.sizeBytes))
    expect(asU16(attributes.get(CTRL_ATTR_FAMILY_ID))).toBe(GENL_ID_CTRL)
  })

  test('gets all messages of a dump', () => {
    using socket = new NetlinkSocket(NETLINK_GENERIC)
    const names = socket
      .request(GENL_ID_CTRL, [getFamily], 'dump')
      .map(({ body }) => asText(decodeAttributes(body.subarray(GENLMSGHDR.sizeBytes)).get(CTRL_ATTR_FAMILY_NAME)))
    expect(names).toContain('nlctrl')
    expect(names.length).toBeGreaterThan(1)
    expect(new Set(names).size).toBe(names.length)
  })

  test('is refused with errno, and works afterwards', () => {
    using socket = new NetlinkSocket(NETLINK_GENERIC)
    const error = thrown(NetlinkError, () => socket.request(GENL_ID_CTRL, [getFamily, named('no-such-family')]))
    expect(error.errno).toBe(constants.errno.ENOENT)
    expect(socket.request(GENL_ID_CTRL, [getFamily, named('nlctrl')])).toHaveLength(1)
  })

  test("is told the kernel's own sentence", () => {
    using socket = new NetlinkSocket(NETLINK_GENERIC)
    const error = thrown(NetlinkError, () =>
      socket.request(GENL_ID_CTRL, [getFamily, named('a-name-that-is-too-long')]),
    )
    expect(error.errno).toBe(constants.errno.EINVAL)
    expect(error.extack).not.toBe('')
    expect(error.message).toBe(`netlink: ${error.extack} (EINVAL)`)
  })

  test('has nothing to hand over when nobody spoke', () => {
    using socket = new NetlinkSocket(NETLINK_GENERIC)
    const seen: unknown[] = []
    expect(socket.drain((message) => seen.push(message))).toEqual({ lost: false })
    expect(seen).toEqual([])
  })
})
