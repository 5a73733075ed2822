import { POLLIN } from '../../../src/abi/linux.ts'
import { EventFd } from '../../../src/sys/eventfd.ts'
import type { CardLink } from '../conformance/card-link.ts'
import { GuestMemory } from '../guest-memory.ts'
import { type FrontendRing, poll } from '../vhost-user-client.ts'
import { type VhostMemory, VhostVdpa } from './vhost-vdpa.ts'

const regionOf = ({ start, lengthBytes, mappedAt }: GuestMemory): VhostMemory => ({
  iova: start,
  size: lengthBytes,
  address: mappedAt,
})

/** A card behind a /dev/vhost-vdpa-N. */
export class VhostVdpaLink implements CardLink {
  readonly transport = 'vhost-vdpa'
  readonly showsNeedsReset = false
  readonly memory: GuestMemory
  readonly #device: VhostVdpa
  readonly #configCall = new EventFd()

  constructor(path: string, memoryBytes: number) {
    this.memory = new GuestMemory(memoryBytes)
    this.#device = new VhostVdpa(path)
    this.addMemory(this.memory)
  }

  addMemory(memory: GuestMemory): void {
    this.#device.remap([], [regionOf(memory)])
  }

  removeMemory(memory: GuestMemory): void {
    this.#device.remap([regionOf(memory)], [])
  }

  offeredFeatures(): bigint {
    return this.#device.offeredFeatures
  }

  /** The device judges them at FEATURES_OK. */
  setFeatures(features: bigint): boolean {
    this.#device.setFeatures(features)
    return true
  }

  getStatus(): number {
    return this.#device.status
  }

  setStatus(status: number): boolean {
    this.#device.status = status
    // A reset makes the kernel forget whom to call.
    if (status === 0) this.#device.setConfigCall(this.#configCall.fd)
    return this.#device.status === status
  }

  readConfig(offset: number, length: number): Uint8Array {
    return this.#device.readConfig(offset, length)
  }

  setUpRing(ring: FrontendRing): void {
    const { index, model, base } = ring
    const { size, descAddr, availAddr, usedAddr } = model
    const [kickFd, callFd] = [ring.kick.fd, ring.call.fd]
    this.#device.setUpRing({ index, size, base, descAddr, availAddr, usedAddr, kickFd, callFd })
    this.#device.enableRing(index)
  }

  ringBase(index: number): number {
    return this.#device.ringBase(index)
  }

  configCalled(timeoutMs: number): boolean {
    if ((poll(this.#configCall.fd, POLLIN, timeoutMs) & POLLIN) === 0) return false
    this.#configCall.drain()
    return true
  }

  [Symbol.dispose](): void {
    this.#device[Symbol.dispose]()
    this.#configCall[Symbol.dispose]()
    this.memory[Symbol.dispose]()
  }
}
