import { SCALING } from '../abi/receive-scaling.ts'
import { OwnedFd } from '../sys/fd.ts'
import { check, native } from '../sys/native.ts'

/**
 * The program that chooses, inside the kernel, which of a TAP's queues gets a packet: the one that the driver's hash
 * and table name (zig/steering.zig). Not every process may load one.
 */
export class Steering {
  readonly #map: OwnedFd
  readonly #program: OwnedFd

  private constructor(map: OwnedFd, program: OwnedFd) {
    this.#map = map
    this.#program = program
  }

  /** The errno where the kernel, or who watches over this process, refuses one. */
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
   * Steers by `scaling` (`struct vn_scaling`) from now on. `order`: the queue pairs whose queues are in the TAP, by
   * their number there. What is meant for one that is not in goes to the first. While it changes a packet may still be
   * judged by a part of either.
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
