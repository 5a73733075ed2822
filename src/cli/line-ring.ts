/** Capacity, bytes; a power of two. */
const RING_BYTES = 64 * 1024

/** Words before the bytes; each has one writer. `put` and `taken` are free-running byte counters, modulo 2^32. */
const WORD = { put: 0, taken: 1, lostLines: 2, failing: 3 } as const
const HEADER_BYTES = 16

/** A byte ring between two threads: one writer, one reader. */
export class LineRing {
  readonly buffer: SharedArrayBuffer
  readonly #words: Int32Array
  readonly #bytes: Uint8Array

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(HEADER_BYTES + RING_BYTES)) {
    this.buffer = buffer
    this.#words = new Int32Array(buffer, 0, HEADER_BYTES / 4)
    this.#bytes = new Uint8Array(buffer, HEADER_BYTES)
  }

  /** Writer: copies as much as there is room for, and returns how many bytes. */
  put(bytes: Uint8Array): number {
    const put = Atomics.load(this.#words, WORD.put)
    const room = RING_BYTES - ((put - Atomics.load(this.#words, WORD.taken)) >>> 0)
    const count = Math.min(room, bytes.length)
    for (let done = 0; done < count; ) {
      const at = (put + done) & (RING_BYTES - 1)
      const piece = bytes.subarray(done, Math.min(count, done + RING_BYTES - at))
      this.#bytes.set(piece, at)
      done += piece.length
    }
    // ORDERING: bytes first, then the count that publishes them.
    Atomics.store(this.#words, WORD.put, (put + count) | 0)
    Atomics.notify(this.#words, WORD.put)
    return count
  }

  /** True if the reader has finished with all bytes. */
  isEmpty(): boolean {
    return Atomics.load(this.#words, WORD.put) === Atomics.load(this.#words, WORD.taken)
  }

  /** Lines that the reader has failed to write. */
  get lostLines(): number {
    return Atomics.load(this.#words, WORD.lostLines) >>> 0
  }

  /** True if the reader has failed to write the newest bytes. */
  get isFailing(): boolean {
    return Atomics.load(this.#words, WORD.failing) === 1
  }

  /** Reader: waits for bytes and returns a copy; {@link done} frees their place. */
  take(): Uint8Array<ArrayBuffer> {
    for (;;) {
      const put = Atomics.load(this.#words, WORD.put)
      const taken = Atomics.load(this.#words, WORD.taken)
      const start = taken & (RING_BYTES - 1)
      const count = Math.min((put - taken) >>> 0, RING_BYTES - start)
      if (count > 0) return new Uint8Array(this.#bytes.subarray(start, start + count))
      Atomics.wait(this.#words, WORD.put, put)
    }
  }

  /** Reader: `bytes` are finished. If writing failed, `lostLines` of them were lost. */
  done(bytes: number, failed: boolean, lostLines: number): void {
    Atomics.store(this.#words, WORD.failing, failed ? 1 : 0)
    Atomics.add(this.#words, WORD.lostLines, lostLines)
    Atomics.add(this.#words, WORD.taken, bytes)
  }
}
