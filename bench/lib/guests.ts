import { maskFeatures, UNFIT_FOR_UML } from '../../scripts/frontends/mask-features.ts'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { startUml } from '../../scripts/frontends/uml.ts'
import { startVhostQemu } from '../../scripts/frontends/vhost-qemu.ts'
import type { Lab } from '../../scripts/lab/lab.ts'
import { startBackend } from './contestants.ts'
import type { Rig } from './rig.ts'

/** A whole Linux behind a card, both ends with an address. */
export interface Station extends AsyncDisposable {
  readonly guest: Lab
  /** The host's address. */
  readonly host: string
  /** The guest's address. */
  readonly address: string
  /** The process that moves the packets. */
  readonly device: NativeProcess
  /** All that polls or runs for it. */
  readonly processes: readonly NativeProcess[]
}

/** Its own network for each station: they are there at the same time. */
let stations = 0

const connect = async (rig: Rig, ifname: string, guest: Lab): Promise<{ host: string; address: string }> => {
  const network = `10.80.${++stations}`
  const host = `${network}.1`
  const address = `${network}.2`
  rig.ip(`addr add ${host}/24 dev ${ifname}`)
  await guest.ok(`ip addr add ${address}/24 dev eth0 && ip link set eth0 up`)
  await guest.waitFor(`ping -c 1 -W 1 ${host}`)
  return { host, address }
}

/** User Mode Linux on a vhost-user device. */
export const umlStation = async (rig: Rig, who: 'vduse-net' | 'DPDK'): Promise<Station> => {
  await using opened = new AsyncDisposableStack()
  const backend = await startBackend(rig, who)
  opened.use(backend.process)
  const processes = [backend.process]
  let socket = backend.socket
  if (who === 'DPDK') {
    socket = rig.socket()
    const masked = { netns: rig.netns, listen: socket, connect: backend.socket, mask: UNFIT_FOR_UML }
    processes.push(opened.use(await maskFeatures(masked)))
  }
  const uml = opened.use(await startUml({ netns: rig.netns, sockets: [socket], cpu: rig.placement.frontend }))
  processes.push(uml.process)
  await backend.forward()
  const ends = await connect(rig, backend.ifname, uml.guest)
  const all = opened.move()
  const dispose = (): Promise<void> => all.disposeAsync()
  return { guest: uml.guest, ...ends, device: backend.process, processes, [Symbol.asyncDispose]: dispose }
}

/**
 * A QEMU guest on a vhost-user device, or on QEMU's own TAP backend. There the device is QEMU itself, with the guest's
 * work in its time.
 */
export const qemuStation = async (rig: Rig, who: 'vduse-net' | 'QEMU'): Promise<Omit<Station, 'device'>> => {
  await using opened = new AsyncDisposableStack()
  if (who === 'QEMU') {
    const ifname = rig.interfaceName()
    const guest = opened.use(await startVhostQemu({ netns: rig.netns, card: { tap: ifname }, cpus: 1 }))
    rig.ip(`link set ${ifname} up`)
    const ends = await connect(rig, ifname, guest)
    const all = opened.move()
    return { guest, ...ends, processes: [], [Symbol.asyncDispose]: () => all.disposeAsync() }
  }
  const backend = await startBackend(rig, who)
  opened.use(backend.process)
  const guest = opened.use(await startVhostQemu({ netns: rig.netns, card: { socket: backend.socket }, cpus: 1 }))
  const ends = await connect(rig, backend.ifname, guest)
  const all = opened.move()
  return { guest, ...ends, processes: [backend.process], [Symbol.asyncDispose]: () => all.disposeAsync() }
}
