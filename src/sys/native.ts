import { dlopen, FFIType, ptr } from 'bun:ffi'
import { readFileSync, readlinkSync } from 'node:fs'
import { constants } from 'node:os'
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads'
import { assert } from '../base/assert.ts'
import { isCompiled } from '../base/build-info.ts'
import { SysError } from '../base/errors.ts'
import { libraryPath } from './library-path.ts'
import { symbols } from './symbols.ts'

/** Name of the memfd in /proc/self/maps. */
const memfdName = 'vduse-net-native'

/** Where the thread that loads first tells its Workers about the memfd. */
const environmentKey = 'vduse-net.native-fd'

/** MFD_CLOEXEC of linux/memfd.h. */
const MFD_CLOEXEC = 1

/**
 * The embedded library as a memfd: dlopen wants a path, and /proc/self/fd/N needs no writable folder and no exec mount. Left
 * to Bun, the library would be extracted to /tmp under a name that anybody can guess.
 * SYSCALLS: memfd_create, write.
 */
const libraryMemfd = (): number => {
  const libc = dlopen('libc.so.6', {
    memfd_create: { args: ['ptr', 'u32'], returns: 'i32' },
    write: { args: ['i32', 'ptr', 'u64'], returns: FFIType.i64_fast },
  })
  try {
    const fd = libc.symbols.memfd_create(Buffer.from(`${memfdName}\0`), MFD_CLOEXEC)
    // libc keeps errno where FFI cannot see it; out of descriptors or memory is what there is.
    if (fd < 0) throw new SysError('memfd_create', constants.errno.EMFILE)
    let rest: Uint8Array = readFileSync(libraryPath())
    while (rest.length > 0) {
      const written = Number(libc.symbols.write(fd, rest, rest.length))
      if (written <= 0) throw new SysError('write of the native library', constants.errno.ENOMEM)
      rest = rest.subarray(written)
    }
    return fd
  } finally {
    libc.close()
  }
}

/**
 * The path to dlopen. Every thread must give the same one: the dynamic loader then hands out the image it has, and there is one
 * guard table for the process. The memfd stays open as long as the process, so that its number cannot come to mean another file.
 */
const imagePath = (): string => {
  if (!isCompiled) return libraryPath()
  const inherited = getEnvironmentData(environmentKey)
  if (typeof inherited === 'number') {
    const path = `/proc/self/fd/${inherited}`
    if (readlinkSync(path).startsWith(`/memfd:${memfdName}`)) return path
  }
  const fd = libraryMemfd()
  setEnvironmentData(environmentKey, fd)
  return `/proc/self/fd/${fd}`
}

type Argument<T> = T extends 'ptr' ? NodeJS.TypedArray | number | null : number
type Arguments<T extends readonly unknown[]> = { -readonly [Index in keyof T]: Argument<T[Index]> }
type Result<T> = T extends 'cstring' ? string | null : number

/** The functions of symbols.ts: an address is a number or a typed array, and no result is a BigInt (see there). */
export type Native = {
  readonly [Name in keyof typeof symbols]: (
    ...args: Arguments<(typeof symbols)[Name]['args']>
  ) => Result<(typeof symbols)[Name]['returns']>
}

/**
 * The native library's functions: direct FFI calls, nothing in between. An argument outside its C type wraps silently. A Worker
 * must be started by a thread that has imported this module, so that both get the same image.
 */
export const native = dlopen(imagePath(), symbols).symbols as unknown as Native

/**
 * The address of a typed array's first element, for C. It stays as long as the array: the caller keeps the array reachable.
 * JSC keeps a small array's elements in its own heap and moves them out when somebody first asks for `.buffer`: so that
 * is done here, before the address is taken.
 */
export const addressOf = (array: NodeJS.TypedArray): number => {
  void array.buffer
  return Number(ptr(array))
}

/** `text` as a NUL-terminated string for C. */
export const cString = (text: string): Uint8Array => {
  assert(!text.includes('\0'), 'a NUL in a string for C')
  return new TextEncoder().encode(`${text}\0`)
}

/** `result` if it is no error; throws SysError in the name of `call` if it is -errno. For callers without a plan for any. */
export const check = (call: string, result: number): number => {
  if (result < 0) throw new SysError(call, -result)
  return result
}
