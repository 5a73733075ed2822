import { closeSync, constants, openSync } from 'node:fs'
import { addressOf, check, native } from '../../src/sys/native.ts'

/** linux/tty.h ioctls of asm-generic/ioctls.h. */
const TIOCGPTN = 0x80045430
const TIOCSPTLCK = 0x40045431

/** A terminal whose user is the test. */
export class PseudoTerminal implements Disposable {
  /** What the user types is written here, and what the program says is read here. */
  readonly fd = openSync('/dev/ptmx', constants.O_RDWR | constants.O_NOCTTY)
  readonly path: string
  readonly #ends: number[] = []

  constructor() {
    const word = new Int32Array(1)
    check('TIOCSPTLCK', native.vn_ioctl(this.fd, TIOCSPTLCK, addressOf(word)))
    check('TIOCGPTN', native.vn_ioctl(this.fd, TIOCGPTN, addressOf(word)))
    this.path = `/dev/pts/${word[0]}`
  }

  /** The program's end: a descriptor for its stdin, stdout and stderr. */
  openEnd(): number {
    const fd = openSync(this.path, constants.O_RDWR | constants.O_NOCTTY)
    this.#ends.push(fd)
    return fd
  }

  [Symbol.dispose](): void {
    for (const fd of [this.fd, ...this.#ends]) closeSync(fd)
  }
}
