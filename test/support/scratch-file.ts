import { closeSync, ftruncateSync, openSync, unlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** A file without a name, for mappings: what a memfd is to a frontend. Closed by its owner. */
export class ScratchFile {
  readonly fd: number

  constructor(lengthBytes: number) {
    const path = join(tmpdir(), `vduse-net-scratch-${process.pid}-${crypto.randomUUID()}`)
    this.fd = openSync(path, 'w+', 0o600)
    unlinkSync(path)
    this.truncate(lengthBytes)
  }

  truncate(lengthBytes: number): void {
    ftruncateSync(this.fd, lengthBytes)
  }

  [Symbol.dispose](): void {
    closeSync(this.fd)
  }
}
