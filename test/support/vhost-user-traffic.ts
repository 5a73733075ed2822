import { expect } from 'bun:test'
import { numberOf, testFrame } from './packet-socket.ts'
import type { Backend } from './vhost-user-backend.ts'
import { Frontend, type FrontendOptions, type FrontendRing } from './vhost-user-client.ts'

/** Frames between a front-end and the other side of the card's TAP, each with a number of its own. */
export class Traffic {
  readonly #backend: Backend
  #last = 1000

  constructor(backend: Backend) {
    this.#backend = backend
  }

  /** A new, unique frame. */
  frame(bytes?: number): Uint8Array {
    return testFrame(++this.#last, bytes)
  }

  /** One frame from the driver to the wire. */
  out(frontend: Frontend, ring: FrontendRing = frontend.tx): void {
    const frame = this.frame()
    frontend.transmit(frame, { ring })
    this.arrives(frame)
    frontend.used(ring)
  }

  /** The next frame on the wire is this one. */
  arrives(frame: Uint8Array): void {
    const out = this.#backend.wire.receive()
    expect(out === null ? null : numberOf(out)).toBe(numberOf(frame))
  }

  /** One frame from the wire to the driver; others that come before it are passed over. */
  in(frontend: Frontend, ring: FrontendRing = frontend.rx): void {
    const frame = this.frame()
    frontend.provide(8, 2048, ring)
    this.#backend.wire.send(frame)
    while (numberOf(frontend.receive(ring)) !== numberOf(frame)) frontend.provide(8, 2048, ring)
  }

  /** One frame each way. */
  pass(frontend: Frontend): void {
    this.out(frontend)
    this.in(frontend)
  }

  /** A well-behaved front-end gets its packets both ways. */
  serveNext(options: FrontendOptions = {}): void {
    using frontend = Frontend.start(this.#backend.socketPath, options)
    this.pass(frontend)
  }
}
