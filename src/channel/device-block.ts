/**
 * What the device worker shares with main: main writes requests and reads the device's state. One SharedArrayBuffer of
 * Int32 words; each has one writer.
 */
const WORD = {
  /** Written by main. */
  requestSequence: 0,
  requestLinkUp: 1,
  requestStop: 2,
  /** Written by the device worker. */
  logLinesLeftOut: 3,
  status: 4,
  linkUp: 5,
  resets: 6,
  messages: 7,
  featuresLow: 8,
  featuresHigh: 9,
  tapPresent: 10,
  tapUp: 11,
  /** Number of the last request carried out. */
  requestDone: 12,
  tapIndex: 13,
  /** Two words: the six octets in wire order, then two bytes of 0. */
  mac: 14,
  connected: 16,
} as const
const WORDS = 18

export class DeviceBlock {
  readonly buffer: SharedArrayBuffer
  readonly #words: Int32Array
  readonly #mac: BigInt64Array

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(WORDS * 4)) {
    this.buffer = buffer
    this.#words = new Int32Array(buffer)
    this.#mac = new BigInt64Array(buffer, WORD.mac * 4, 1)
  }

  /**
   * Main: requests the operator's side of the link. The caller wakes the device worker by its eventfd. Returns the
   * request's number.
   */
  requestLinkUp(up: boolean): number {
    Atomics.store(this.#words, WORD.requestLinkUp, up ? 1 : 0)
    return Atomics.add(this.#words, WORD.requestSequence, 1) + 1
  }

  /** Main: requests that the device worker stops. */
  requestStop(): void {
    Atomics.store(this.#words, WORD.requestStop, 1)
  }

  get request(): { readonly sequence: number; readonly linkUp: boolean; readonly stop: boolean } {
    const sequence = Atomics.load(this.#words, WORD.requestSequence)
    return {
      sequence,
      linkUp: Atomics.load(this.#words, WORD.requestLinkUp) === 1,
      stop: Atomics.load(this.#words, WORD.requestStop) === 1,
    }
  }

  get requestDone(): number {
    return Atomics.load(this.#words, WORD.requestDone)
  }

  set requestDone(sequence: number) {
    Atomics.store(this.#words, WORD.requestDone, sequence)
  }

  /** {@link import('../device/control-transport.ts').ControlTransport.connected}. */
  get connected(): boolean {
    return Atomics.load(this.#words, WORD.connected) === 1
  }

  set connected(connected: boolean) {
    Atomics.store(this.#words, WORD.connected, connected ? 1 : 0)
  }

  /** The status byte that the driver has written. */
  get status(): number {
    return Atomics.load(this.#words, WORD.status)
  }

  set status(status: number) {
    Atomics.store(this.#words, WORD.status, status)
  }

  /** VIRTIO_NET_S_LINK_UP, as the driver reads it. */
  get linkUp(): boolean {
    return Atomics.load(this.#words, WORD.linkUp) === 1
  }

  set linkUp(up: boolean) {
    Atomics.store(this.#words, WORD.linkUp, up ? 1 : 0)
  }

  /** Resets by the driver. */
  get resets(): number {
    return Atomics.load(this.#words, WORD.resets)
  }

  set resets(count: number) {
    Atomics.store(this.#words, WORD.resets, count)
  }

  /** Control messages answered. */
  get messages(): number {
    return Atomics.load(this.#words, WORD.messages)
  }

  set messages(count: number) {
    Atomics.store(this.#words, WORD.messages, count)
  }

  /** Log lines that the limit of {@link import('../base/log-limit.ts').LogLimit} left out. */
  get logLinesLeftOut(): number {
    return Atomics.load(this.#words, WORD.logLinesLeftOut) >>> 0
  }

  set logLinesLeftOut(count: number) {
    Atomics.store(this.#words, WORD.logLinesLeftOut, count | 0)
  }

  /** The driver's features. */
  get features(): bigint {
    const low = BigInt(Atomics.load(this.#words, WORD.featuresLow) >>> 0)
    return low | (BigInt(Atomics.load(this.#words, WORD.featuresHigh) >>> 0) << 32n)
  }

  set features(features: bigint) {
    Atomics.store(this.#words, WORD.featuresLow, Number(features & 0xffffffffn) | 0)
    Atomics.store(this.#words, WORD.featuresHigh, Number(features >> 32n) | 0)
  }

  /** The TAP's interface index. */
  get tapIndex(): number {
    return Atomics.load(this.#words, WORD.tapIndex)
  }

  set tapIndex(index: number) {
    Atomics.store(this.#words, WORD.tapIndex, index)
  }

  /** The MAC in the configuration space: the card's own, or the one that the driver has set. Six bytes. */
  get mac(): Uint8Array {
    return new Uint8Array(BigInt64Array.of(Atomics.load(this.#mac, 0)).buffer, 0, 6)
  }

  set mac(mac: Uint8Array) {
    const word = new BigInt64Array(1)
    new Uint8Array(word.buffer).set(mac)
    // One store, so that no reader sees half of each address.
    Atomics.store(this.#mac, 0, word[0]!)
  }

  /** True while the TAP exists. */
  get tapPresent(): boolean {
    return Atomics.load(this.#words, WORD.tapPresent) === 1
  }

  set tapPresent(present: boolean) {
    Atomics.store(this.#words, WORD.tapPresent, present ? 1 : 0)
  }

  /** True while the TAP is administratively up. */
  get tapUp(): boolean {
    return Atomics.load(this.#words, WORD.tapUp) === 1
  }

  set tapUp(up: boolean) {
    Atomics.store(this.#words, WORD.tapUp, up ? 1 : 0)
  }
}
