import { SCALING } from '../abi/receive-scaling.ts'
import { OwnedFd } from '../sys/fd.ts'
import { check, native } from '../sys/native.ts'

/**
 * The eBPF program that chooses the TAP queue of each packet in the kernel, by the driver's hash and indirection table
 * (zig/steering.zig). Loading it needs CAP_BPF.
 */
export class Steering {
  readonly #map: OwnedFd
  readonly #program: OwnedFd

  private constructor(map: OwnedFd, program: OwnedFd) {
    this.#map = map
    this.#program = program
  }

  /** Loads the program. Returns the errno if the kernel, or a security policy, refuses it. */
  static load(): Steering | number {
    const map = native.vn_steering_map()
    if (map < 0) return -map
    const program = native.vn_steering_program(map)
    if (program >= 0) return new Steering(new OwnedFd(map), new OwnedFd(program))
    native.vn_close(map)
    return -program
  }

  /** For TUNSETSTEERINGEBPF. */
  get fd(): number {
    return this.#program.fd
  }

  /**
   * Steers by `scaling` (`struct vn_scaling`) from now on. `order`: the queue pairs whose queues are attached to the
   * TAP, by the TAP's queue number. Packets for a detached queue go to the first. During an update a packet may be
   * steered by a mixture of old and new values.
   */
  update(scaling: Uint32Array, order: readonly number[]): void {
    const words = scaling.slice()
    const unclassified = SCALING.unclassified_queue / 4
    const queueOf = (pair: number): number => Math.max(0, order.indexOf(pair))
    for (let at = SCALING.indirection / 4; at < SCALING.hash_types / 4; at++) words[at] = queueOf(words[at]!)
    words[unclassified] = queueOf(words[unclassified]!)
    check('bpf(BPF_MAP_UPDATE_ELEM)', native.vn_steering_update(this.#map.fd, words))
  }

  [Symbol.dispose](): void {
    this.#program[Symbol.dispose]()
    this.#map[Symbol.dispose]()
  }
}
