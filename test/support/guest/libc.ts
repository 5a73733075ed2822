import { dlopen, FFIType } from 'bun:ffi'

const { i32, i64, u32, u64, ptr } = FFIType

/** What of the C library the guest's programs call. Pointers are typed arrays, or addresses. */
export const { symbols: libc } = dlopen('libc.so.6', {
  open: { args: [ptr, i32], returns: i32 },
  close: { args: [i32], returns: i32 },
  write: { args: [i32, ptr, u64], returns: i64 },
  read: { args: [i32, ptr, u64], returns: i64 },
  ioctl: { args: [i32, u64, ptr], returns: i32 },
  poll: { args: [ptr, u64, i32], returns: i32 },
  eventfd: { args: [u32, i32], returns: i32 },
  memfd_create: { args: [ptr, u32], returns: i32 },
  ftruncate: { args: [i32, i64], returns: i32 },
  mmap: { args: [ptr, u64, i32, i32, i32, i64], returns: ptr },
  socket: { args: [i32, i32, i32], returns: i32 },
  bind: { args: [i32, ptr, u32], returns: i32 },
  connect: { args: [i32, ptr, u32], returns: i32 },
  setsockopt: { args: [i32, i32, i32, ptr, u32], returns: i32 },
  send: { args: [i32, ptr, u64, i32], returns: i64 },
  recv: { args: [i32, ptr, u64, i32], returns: i64 },
  recvfrom: { args: [i32, ptr, u64, i32, ptr, ptr], returns: i64 },
  sendto: { args: [i32, ptr, u64, i32, ptr, u32], returns: i64 },
})

/** The result of a call that must not fail. */
export const check = (call: string, result: number | bigint): number => {
  if (result < 0) throw new Error(`${call} failed`)
  return Number(result)
}

/** A string as C reads it. */
export const cString = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`)
