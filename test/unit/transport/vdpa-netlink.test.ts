import { describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, GENL_ID_CTRL } from '../../../src/abi/netlink.ts'
import * as vdpa from '../../../src/abi/vdpa.ts'
import {
  type Attribute,
  asText,
  decodeAttributes,
  encodeAttributes,
  type NetlinkMessage,
  text,
  u16,
  u32,
} from '../../../src/sys/netlink-message.ts'
import { NetlinkError, type NetlinkRequester } from '../../../src/sys/netlink-socket.ts'
import { VdpaError, VdpaNetlink } from '../../../src/transport/vduse/vdpa-netlink.ts'
import { thrown } from '../../support/refusal.ts'

const { EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM } = constants.errno
const FAMILY = 0x23

const u64 = (value: bigint): Uint8Array => {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, value, true)
  return bytes
}

const message = (command: number, attributes: Attribute[]): NetlinkMessage => {
  const encoded = encodeAttributes(attributes)
  return { type: FAMILY, flags: 0, sequence: 1, body: Uint8Array.from([command, 1, 0, 0, ...encoded]) }
}

const refuse = (errno: number, extack = ''): never => {
  throw new NetlinkError(errno, extack)
}

/** The kernel's vdpa family as drivers/vdpa/vdpa.c has it, as far as its answers go. */
class ModelKernel implements NetlinkRequester {
  loaded = true
  allowed = true
  /** VDUSE devices that are created, by name: are all queues set up? */
  readonly created = new Map<string, boolean>()
  readonly devices = new Set<string>()
  featuresOk = false

  request(type: number, parts: readonly Uint8Array[], kind: 'do' | 'dump' = 'do'): NetlinkMessage[] {
    const bytes = Uint8Array.from(parts.flatMap((part) => [...part]))
    const [command, version] = bytes
    const attributes = decodeAttributes(bytes.subarray(4))
    if (type === GENL_ID_CTRL) {
      expect(asText(attributes.get(CTRL_ATTR_FAMILY_NAME))).toBe('vdpa')
      return this.loaded ? [message(1, [[CTRL_ATTR_FAMILY_ID, u16(FAMILY)]])] : refuse(ENOENT)
    }
    expect(type).toBe(FAMILY)
    expect(version).toBe(1)
    return this.#vdpa(command!, attributes, kind)
  }

  #vdpa(command: number, attributes: ReadonlyMap<number, Uint8Array>, kind: 'do' | 'dump'): NetlinkMessage[] {
    const name = asText(attributes.get(vdpa.VDPA_ATTR_DEV_NAME)) ?? ''
    const device = (): Attribute[] =>
      this.devices.has(name) ? [[vdpa.VDPA_ATTR_DEV_NAME, text(name)]] : refuse(ENODEV, 'vdpa: device not found')
    switch (command) {
      case vdpa.VDPA_CMD_MGMTDEV_GET:
        expect(kind).toBe('dump')
        return [
          message(1, [
            [vdpa.VDPA_ATTR_MGMTDEV_BUS_NAME, text('pci')],
            [vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME, text('vduse')],
          ]),
          message(1, [
            [vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME, text('vduse')],
            [vdpa.VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES, u64((1n << 1n) | (1n << 2n))],
            [vdpa.VDPA_ATTR_DEV_MGMTDEV_MAX_VQS, u32(0)],
            [vdpa.VDPA_ATTR_DEV_SUPPORTED_FEATURES, u64(0n)],
          ]),
        ]
      case vdpa.VDPA_CMD_DEV_NEW:
        if (!this.allowed) refuse(EPERM)
        if (asText(attributes.get(vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME)) !== 'vduse') {
          refuse(ENODEV, 'vdpa: Fail to find the specified management device')
        }
        if (name === 'unsupported') refuse(EOPNOTSUPP, 'vdpa: Some provided attributes are not supported: 0x400')
        if (this.created.get(name) !== true) refuse(EINVAL)
        if (this.devices.has(name)) refuse(EEXIST)
        this.devices.add(name)
        return []
      case vdpa.VDPA_CMD_DEV_DEL:
        if (!this.allowed) refuse(EPERM)
        device()
        this.devices.delete(name)
        return []
      case vdpa.VDPA_CMD_DEV_GET: {
        const describe = (which: string): NetlinkMessage =>
          message(vdpa.VDPA_CMD_DEV_NEW, [
            [vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME, text('vduse')],
            [vdpa.VDPA_ATTR_DEV_NAME, text(which)],
            [vdpa.VDPA_ATTR_DEV_ID, u32(1)],
            [vdpa.VDPA_ATTR_DEV_VENDOR_ID, u32(0)],
            [vdpa.VDPA_ATTR_DEV_MAX_VQS, u32(2)],
            [vdpa.VDPA_ATTR_DEV_MAX_VQ_SIZE, u16(256)],
          ])
        if (kind === 'dump') return [...this.devices].map(describe)
        device()
        return [describe(name)]
      }
      case vdpa.VDPA_CMD_DEV_CONFIG_GET:
        return [
          message(vdpa.VDPA_CMD_DEV_CONFIG_GET, [
            ...device(),
            [vdpa.VDPA_ATTR_DEV_ID, u32(1)],
            ...(this.featuresOk ? [[vdpa.VDPA_ATTR_DEV_NEGOTIATED_FEATURES, u64(1n << 63n)] as const] : []),
            [vdpa.VDPA_ATTR_DEV_FEATURES, u64(0x1_0000_0021n)],
            [vdpa.VDPA_ATTR_DEV_NET_CFG_MTU, u16(1500)],
            [vdpa.VDPA_ATTR_DEV_NET_CFG_MACADDR, Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56)],
            [vdpa.VDPA_ATTR_DEV_NET_STATUS, u16(1)],
          ]),
        ]
      default:
        return refuse(EOPNOTSUPP)
    }
  }
}

describe('vdpa management', () => {
  test('finds the management device that is on no bus', () => {
    expect(new VdpaNetlink(new ModelKernel()).mgmtdevGet('vduse')).toEqual({
      bus: undefined,
      name: 'vduse',
      supportsNet: true,
      maxVqs: 0,
      supportedFeatures: 0n,
    })
    expect(new VdpaNetlink(new ModelKernel()).mgmtdevGet('vdpasim_net')).toBeNull()
  })

  test('adds, shows and deletes a device', () => {
    const kernel = new ModelKernel()
    const netlink = new VdpaNetlink(kernel)
    kernel.created.set('card0', true).set('card1', true)
    expect(netlink.devGet('card0')).toBeNull()
    netlink.devAdd({ name: 'card0', mgmtdev: 'vduse' })
    netlink.devAdd({ name: 'card1', mgmtdev: 'vduse' })
    const card0 = { name: 'card0', mgmtdev: 'vduse', deviceId: 1, vendorId: 0, maxVqs: 2, maxVqSize: 256 }
    expect(netlink.devGet('card0')).toEqual(card0)
    expect(netlink.devices()).toEqual([card0, { ...card0, name: 'card1' }])
    expect(netlink.devDel('card0')).toBeTrue()
    expect(netlink.devGet('card0')).toBeNull()
    expect(netlink.devDel('card0')).toBeFalse()
    expect(netlink.devices().map(({ name }) => name)).toEqual(['card1'])
  })

  test('reads the configuration, before and after FEATURES_OK', () => {
    const kernel = new ModelKernel()
    const netlink = new VdpaNetlink(kernel)
    kernel.devices.add('card0')
    const config = {
      name: 'card0',
      deviceId: 1,
      mac: '52:54:00:12:34:56',
      mtu: 1500,
      linkUp: true,
      maxVqPairs: undefined,
      deviceFeatures: 0x1_0000_0021n,
      negotiatedFeatures: undefined,
    }
    expect(netlink.devConfigGet('card0')).toEqual(config)
    kernel.featuresOk = true
    expect(netlink.devConfigGet('card0')).toEqual({ ...config, negotiatedFeatures: 1n << 63n })
    expect(netlink.devConfigGet('card1')).toBeNull()
  })

  test('says why a device cannot be added', () => {
    const kernel = new ModelKernel()
    const netlink = new VdpaNetlink(kernel)
    kernel.created.set('card0', true).set('half', false)
    netlink.devAdd({ name: 'card0', mgmtdev: 'vduse' })
    const table: [string, string, number, string, string, number][] = [
      [
        'card0',
        'vduse',
        EEXIST,
        'a vdpa device of this name exists already',
        'vdpa dev del card0, or choose another name with --name',
        1,
      ],
      ['half', 'vduse', EINVAL, 'EINVAL (no VDUSE device of this name is set up)', 'see: ls /dev/vduse/half', 1],
      ['card1', 'vdpasim_net', ENODEV, 'there is no such management device', 'see: vdpa mgmtdev show', 66],
      [
        'unsupported',
        'vduse',
        EOPNOTSUPP,
        'vdpa: Some provided attributes are not supported: 0x400 (EOPNOTSUPP)',
        'this kernel, or this management device, cannot do it',
        1,
      ],
    ]
    for (const [name, mgmtdev, errno, why, hint, exitCode] of table) {
      const error = thrown(VdpaError, () => netlink.devAdd({ name, mgmtdev }))
      expect(error.message).toBe(`vdpa dev add name ${name} mgmtdev ${mgmtdev}: ${why}`)
      expect(error).toMatchObject({ errno, hint, exitCode })
    }
  })

  test('says that it is not permitted', () => {
    const kernel = new ModelKernel()
    const netlink = new VdpaNetlink(kernel)
    kernel.allowed = false
    kernel.devices.add('card0')
    for (const action of [() => netlink.devAdd({ name: 'card1', mgmtdev: 'vduse' }), () => netlink.devDel('card0')]) {
      const error = thrown(VdpaError, action)
      expect(error.message).toEndWith(': EPERM (no permission to manage vdpa devices)')
      expect(error.exitCode).toBe(77)
    }
  })
})

describe('a kernel without the vdpa family', () => {
  const sysRoot = (hasBus: boolean): string => {
    const root = mkdtempSync(join(tmpdir(), 'vduse-net-sysfs-'))
    mkdirSync(join(root, 'bus', hasBus ? 'vdpa' : 'pci'), { recursive: true })
    return root
  }

  test.each([
    [false, 'vdpa: the kernel module is not loaded', 'modprobe vduse', 66],
    [
      true,
      'vdpa: the kernel manages vdpa devices from the initial network namespace only',
      'start in the host network namespace and move the TAP with --netns; or pass --no-attach',
      77,
    ],
  ])('with the bus in sysfs: %p', (hasBus, text, hint, exitCode) => {
    const root = sysRoot(hasBus)
    const kernel = new ModelKernel()
    kernel.loaded = false
    const error = thrown(VdpaError, () => new VdpaNetlink(kernel, root))
    rmSync(root, { recursive: true })
    expect(error.message).toBe(text)
    expect(error).toMatchObject({ hint, exitCode, errno: ENOENT })
  })
})
