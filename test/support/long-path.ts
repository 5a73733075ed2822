import { dlopen } from 'bun:ffi'
import { constants, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { OwnedFd } from '../../src/sys/fd.ts'
import { check, cString } from '../../src/sys/native.ts'

const libc = dlopen('libc.so.6', {
  mkdirat: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  openat: { args: ['i32', 'ptr', 'i32', 'u32'], returns: 'i32' },
})
/** fcntl.h */
const AT_FDCWD = -100
const PATH_MAX = 4096
const NAME = 'n'.repeat(255)

/** A file whose path is longer than /proc tells: it is made folder by folder, and removed but for the descriptor. */
export const fileOfLongPath = (): OwnedFd => {
  const top = mkdtempSync(join(tmpdir(), 'vduse-net-long-path-'))
  const openAt = (folder: number, name: string, flags: number): OwnedFd =>
    new OwnedFd(check(`openat ${name}`, libc.symbols.openat(folder, cString(name), flags, 0o600)))
  let folder = openAt(AT_FDCWD, top, constants.O_DIRECTORY)
  for (let bytes = top.length; bytes < PATH_MAX; bytes += NAME.length) {
    using parent = folder
    check('mkdirat', libc.symbols.mkdirat(parent.fd, cString(NAME), 0o700))
    folder = openAt(parent.fd, NAME, constants.O_DIRECTORY)
  }
  using last = folder
  const file = openAt(last.fd, 'file', constants.O_RDWR | constants.O_CREAT)
  rmSync(top, { recursive: true, force: true })
  return file
}
