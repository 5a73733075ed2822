import { dlopen, FFIType, type Pointer, ptr, read } from 'bun:ffi'
import { readFileSync, readlinkSync } from 'node:fs'
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads'
import { assert } from '../base/assert.ts'
import { isCompiled } from '../base/build-info.ts'
import { SysError, UserError } from '../base/errors.ts'
import { libraryPath } from './library-path.ts'
import { symbols } from './symbols.ts'

/** Name of the memfd in /proc/self/maps. */
const memfdName = 'vduse-net-native'

/** Environment variable by which the first thread to load passes the memfd to its Workers. */
const environmentKey = 'vduse-net.native-fd'

/** linux/memfd.h. */
const MFD_CLOEXEC = 1
const MFD_NOEXEC_SEAL = 8

/**
 * The embedded library as a memfd: dlopen wants a path, and /proc/self/fd/N needs no writable folder and no exec mount.
 * Bun itself would extract the library to /tmp under a predictable name.
 * SYSCALLS: memfd_create, write.
 */
const libraryMemfd = (): number => {
  const libc = dlopen('libc.so.6', {
    memfd_create: { args: ['ptr', 'u32'], returns: 'i32' },
    write: { args: ['i32', 'ptr', 'u64'], returns: FFIType.i64_fast },
    __errno_location: { args: [], returns: 'ptr' },
  })
  // Called directly after the failed call, so errno is still that of the call.
  const fail = (call: string): never => {
    throw new SysError(call, read.i32(libc.symbols.__errno_location() as Pointer, 0))
  }
  try {
    const name = Buffer.from(`${memfdName}\0`)
    // With the sysctl vm.memfd_noexec at 2 only a non-executable memfd is allowed; the loader accepts one. Before Linux
    // 6.3 the flag is unknown.
    let fd = libc.symbols.memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    if (fd < 0) fd = libc.symbols.memfd_create(name, MFD_CLOEXEC)
    if (fd < 0) fail('memfd_create')
    let rest: Uint8Array = readFileSync(libraryPath())
    while (rest.length > 0) {
      const written = Number(libc.symbols.write(fd, rest, rest.length))
      if (written < 0) fail('write of the native library')
      rest = rest.subarray(written)
    }
    return fd
  } finally {
    libc.close()
  }
}

/**
 * The path for dlopen. Every thread must use the same one: the dynamic loader then returns the loaded image, and the
 * process has one guard table. The memfd stays open for the life of the process, so that its number never refers to
 * another file.
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

/** The functions of symbols.ts. An address is a number or a typed array, and no result is a BigInt. */
export type Native = {
  readonly [Name in keyof typeof symbols]: (
    ...args: Arguments<(typeof symbols)[Name]['args']>
  ) => Result<(typeof symbols)[Name]['returns']>
}

const remedy = (why: string): string => {
  // The runtime reserves address space for its JIT.
  if (why.includes('JIT')) return 'allow 4 GB of address space (ulimit -v unlimited), and executable memory'
  return isCompiled ? 'allow memfd_create in the seccomp profile' : 'make it: npm run build'
}

const load = (): Native => {
  try {
    return dlopen(imagePath(), symbols).symbols as unknown as Native
  } catch (error) {
    const [why = ''] = (error as Error).message.split('\n', 1)
    throw new UserError(`the native library cannot be loaded: ${why}`, remedy(why))
  }
}

/**
 * The native library's functions, as direct FFI calls. An argument outside its C type wraps silently. The thread that
 * starts a Worker must have imported this module, so that both use the same image.
 */
export const native = load()

/**
 * The address of a typed array's first element, for C. It is valid while the caller keeps the array reachable. JSC
 * keeps a small array's elements in its own heap and moves them out at the first use of `.buffer`: this function uses
 * it first, then takes the address.
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

/**
 * Returns `result`, or throws SysError with the name `call` if it is -errno. For calls whose errors are all unexpected.
 */
export const check = (call: string, result: number): number => {
  if (result < 0) throw new SysError(call, -result)
  return result
}
