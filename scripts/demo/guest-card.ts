import type { Lab } from '../lab/lab.ts'
import { type Counters, endCounters } from './counters.ts'

/** The admin API of a card in the guest, and the interfaces on both sides of it. */
export class GuestCard {
  readonly #lab: Lab
  readonly #tap: string
  readonly #namespace: string
  readonly #driver: string

  /** `driver` is the card's interface, in the network namespace `namespace`. */
  constructor(lab: Lab, names: { tap: string; namespace: string; driver: string }) {
    this.#lab = lab
    this.#tap = names.tap
    this.#namespace = names.namespace
    this.#driver = names.driver
  }

  /** JSON of a GET on the card's socket. */
  async get<T>(path: string): Promise<T> {
    return JSON.parse(await this.#lab.ok(this.#request(path))) as T
  }

  /** All counters, read in one go. */
  async counters(): Promise<Counters> {
    const output = await this.#lab.ok(
      `ip -s -j link show ${this.#tap} && ip -n ${this.#namespace} -s -j link show ${this.#driver} && ` +
        `${this.#request('/v1/stats')}`,
    )
    const [tap, driver, card] = output
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line))
    return { tap: endCounters(tap), driver: endCounters(driver), card }
  }

  /** The guest has no curl, but the card's executable holds a runtime that can fetch. */
  #request(path: string): string {
    const script =
      `console.log(await (await fetch("http://localhost${path}", { unix: ` +
      `"/run/vduse-net/${this.#tap}.sock" })).text())`
    return `BUN_BE_BUN=1 vduse-net -e '${script}'`
  }
}
