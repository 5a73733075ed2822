import {
  VHOST_F_LOG_ALL,
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_STATUS,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_VRING_STATE,
} from '../../../src/abi/vhost-user.ts'
import { native } from '../../../src/sys/native.ts'
import { bit } from '../bits.ts'
import { GuestMemory } from '../guest-memory.ts'
import { socketPair } from '../socket-pair.ts'
import { bodyOf, type FrontendRing, tableOf, VhostUserClient } from '../vhost-user-client.ts'
import type { CardLink } from './card-link.ts'

const PROTOCOL_FEATURES = [
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_STATUS,
].reduce((set, number) => set | bit(number), 0n)

/** Bits that are the front-end's own. */
const OWN_FEATURES = bit(VHOST_USER_F_PROTOCOL_FEATURES) | bit(VHOST_F_LOG_ALL)

/** A card behind a vhost-user socket: each message is confirmed. */
export class VhostUserLink implements CardLink {
  readonly transport = 'vhost-user'
  readonly showsNeedsReset = true
  readonly memory: GuestMemory
  readonly #client: VhostUserClient
  readonly #back: VhostUserClient

  constructor(socketPath: string, memoryBytes: number) {
    this.memory = new GuestMemory(memoryBytes)
    this.#client = VhostUserClient.connect(socketPath)
    const [ours, theirs] = socketPair()
    this.#back = new VhostUserClient(ours)
    this.#client.send(VHOST_USER_SET_OWNER)
    this.#client.send(VHOST_USER_SET_PROTOCOL_FEATURES, bodyOf(PROTOCOL_FEATURES))
    this.#must(VHOST_USER_SET_BACKEND_REQ_FD, undefined, theirs)
    native.vn_close(theirs)
    this.#must(VHOST_USER_SET_MEM_TABLE, tableOf(this.memory), this.memory.fd)
  }

  #must(request: number, body: Uint8Array | undefined, ...fds: readonly number[]): void {
    if (!this.#client.carriesOut(request, body, fds)) throw new Error(`request ${request} was refused`)
  }

  offeredFeatures(): bigint {
    return this.#client.u64(VHOST_USER_GET_FEATURES) & ~OWN_FEATURES
  }

  setFeatures(features: bigint): boolean {
    return this.#client.carriesOut(
      VHOST_USER_SET_FEATURES,
      bodyOf(BigInt.asUintN(64, features | bit(VHOST_USER_F_PROTOCOL_FEATURES))),
    )
  }

  getStatus(): number {
    return Number(this.#client.u64(VHOST_USER_GET_STATUS))
  }

  setStatus(status: number): boolean {
    const accepted = this.#client.carriesOut(VHOST_USER_SET_STATUS, bodyOf(BigInt(status)))
    return accepted && this.getStatus() === status
  }

  readConfig(offset: number, length: number): Uint8Array {
    const body = new Uint8Array([...bodyOf(offset, length, 0), ...new Uint8Array(length)])
    const answer = this.#client.request(VHOST_USER_GET_CONFIG, body).body
    return new Uint8Array(answer.buffer, answer.byteOffset + 12, length)
  }

  setUpRing(ring: FrontendRing): void {
    const { index, model } = ring
    const [desc, used, avail] = [model.descAddr, model.usedAddr, model.availAddr].map((at) =>
      BigInt(this.memory.user(at)),
    )
    this.#must(VHOST_USER_SET_VRING_NUM, bodyOf(index, model.size))
    this.#must(VHOST_USER_SET_VRING_BASE, bodyOf(index, ring.base))
    this.#must(VHOST_USER_SET_VRING_ADDR, bodyOf(index, 0, desc!, used!, avail!, 0n))
    this.#must(VHOST_USER_SET_VRING_CALL, bodyOf(BigInt(index)), ring.call.fd)
    this.#must(VHOST_USER_SET_VRING_KICK, bodyOf(BigInt(index)), ring.kick.fd)
    this.#must(VHOST_USER_SET_VRING_ENABLE, bodyOf(index, 1))
  }

  ringBase(index: number): number {
    const { body } = this.#client.request(VHOST_USER_GET_VRING_BASE, bodyOf(index, 0))
    return body.getUint32(VHOST_VRING_STATE.num, true)
  }

  configCalled(timeoutMs: number): boolean {
    const message = this.#back.receive(timeoutMs)
    if (message === null) return false
    if (message === 'closed' || message.request !== VHOST_USER_BACKEND_CONFIG_CHANGE_MSG)
      throw new Error(`no configuration change: ${JSON.stringify(message)}`)
    return true
  }

  [Symbol.dispose](): void {
    this.#client[Symbol.dispose]()
    this.#back[Symbol.dispose]()
    this.memory[Symbol.dispose]()
  }
}
