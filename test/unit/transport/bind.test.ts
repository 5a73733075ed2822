import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { VdpaBus } from '../../../src/transport/vduse/bind.ts'
import { refusal } from '../../support/refusal.ts'

/** A folder that looks like sysfs with one vdpa device, `card0`. What is written to its files stays to be read. */
let root: string
const path = (...parts: string[]) => join(root, 'bus/vdpa', ...parts)
const written = (...parts: string[]) => readFileSync(path(...parts), 'utf8')

const loadDriver = (driver: string) => {
  mkdirSync(path('drivers', driver), { recursive: true })
  for (const file of ['bind', 'unbind']) writeFileSync(path('drivers', driver, file), '')
}
const bindTo = (driver: string) => symlinkSync(`../../drivers/${driver}`, path('devices/card0/driver'))

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'vduse-net-sysfs-'))
  mkdirSync(path('devices/card0'), { recursive: true })
  writeFileSync(path('devices/card0/driver_override'), '')
})
afterEach(() => rmSync(root, { recursive: true }))

describe('binding a vdpa device', () => {
  test('that has no driver', () => {
    loadDriver('vhost_vdpa')
    const bus = new VdpaBus(root)
    expect(bus.hasDevice('card0')).toBe(true)
    expect(bus.hasDevice('card1')).toBe(false)
    expect(bus.currentDriver('card0')).toBeNull()
    bus.bindDriver('card0', 'vhost')
    expect(written('devices/card0/driver_override')).toBe('vhost_vdpa')
    expect(written('drivers/vhost_vdpa/bind')).toBe('card0')
  })

  test('that has the other driver, which lets go of it', () => {
    loadDriver('virtio_vdpa')
    loadDriver('vhost_vdpa')
    bindTo('virtio_vdpa')
    const bus = new VdpaBus(root)
    expect(bus.currentDriver('card0')).toBe('virtio_vdpa')
    bus.bindDriver('card0', 'vhost')
    expect(written('devices/card0/driver_override')).toBe('vhost_vdpa')
    expect(written('drivers/virtio_vdpa/unbind')).toBe('card0')
    expect(written('drivers/virtio_vdpa/bind')).toBe('')
    expect(written('drivers/vhost_vdpa/bind')).toBe('card0')
    expect(written('drivers/vhost_vdpa/unbind')).toBe('')
  })

  test('that has it already: nothing but the override', () => {
    loadDriver('virtio_vdpa')
    bindTo('virtio_vdpa')
    new VdpaBus(root).bindDriver('card0', 'virtio')
    expect(written('devices/card0/driver_override')).toBe('virtio_vdpa')
    expect(written('drivers/virtio_vdpa/bind')).toBe('')
    expect(written('drivers/virtio_vdpa/unbind')).toBe('')
  })

  test('to a driver that is not loaded touches nothing', () => {
    loadDriver('virtio_vdpa')
    bindTo('virtio_vdpa')
    const bus = new VdpaBus(root)
    expect(bus.hasDriver('virtio')).toBeTrue()
    expect(bus.hasDriver('vhost')).toBeFalse()
    const error = refusal(() => bus.bindDriver('card0', 'vhost'))
    expect(error.message).toBe('card0: the driver vhost_vdpa is not loaded')
    expect(error).toMatchObject({ hint: 'modprobe vhost_vdpa', exitCode: 66 })
    expect(written('drivers/virtio_vdpa/unbind')).toBe('')
    expect(written('devices/card0/driver_override')).toBe('')
  })

  test('that does not exist', () => {
    loadDriver('virtio_vdpa')
    const error = refusal(() => new VdpaBus(root).bindDriver('card1', 'virtio'))
    expect(error.message).toBe('card1: no such vdpa device')
    expect(error.exitCode).toBe(66)
  })

  test('on a kernel that refuses the write', () => {
    loadDriver('virtio_vdpa')
    rmSync(path('drivers/virtio_vdpa/bind'))
    const error = refusal(() => new VdpaBus(root).bindDriver('card0', 'virtio'))
    expect(error.message).toBe(`card0: cannot write card0 to ${path('drivers/virtio_vdpa/bind')}: ENOENT`)
  })

  test('and taking it away again', () => {
    loadDriver('virtio_vdpa')
    const bus = new VdpaBus(root)
    bus.unbindDriver('card0')
    expect(written('drivers/virtio_vdpa/unbind')).toBe('')
    bindTo('virtio_vdpa')
    bus.unbindDriver('card0')
    expect(written('drivers/virtio_vdpa/unbind')).toBe('card0')
  })
})

describe('what a driver has made of the device', () => {
  test('a network interface', () => {
    const bus = new VdpaBus(root)
    expect(bus.netdevOf('card0')).toBeNull()
    mkdirSync(path('devices/card0/virtio3'))
    expect(bus.netdevOf('card0')).toBeNull()
    mkdirSync(path('devices/card0/virtio3/net/eth7'), { recursive: true })
    expect(bus.netdevOf('card0')).toBe('eth7')
    expect(bus.vhostPathOf('card0')).toBeNull()
    expect(bus.netdevOf('card1')).toBeNull()
  })

  test('a character device', () => {
    const bus = new VdpaBus(root, '/dev')
    mkdirSync(path('devices/card0/vhost-vdpa-12'))
    expect(bus.vhostPathOf('card0')).toBe('/dev/vhost-vdpa-12')
    expect(bus.netdevOf('card0')).toBeNull()
    expect(bus.vhostPathOf('card1')).toBeNull()
  })
})
