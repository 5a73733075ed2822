/**
 * Runs a command in whose processes the kernel refuses TUNSETOFFLOAD: `bun refusing-offloads.ts ERRNO FLAGS COMMAND...`
 * answers with the errno where the argument has one of the flags, and always for flags of 0. Linux before 6.2 is EINVAL
 * and 0x60: it does not know TUN_F_USO4 and TUN_F_USO6.
 */
import { dlopen, FFIType, ptr } from 'bun:ffi'
import { arch } from 'node:os'
import { TUNSETOFFLOAD } from '../../src/abi/tun.ts'

const { i32, u64, pointer } = FFIType
const { symbols: libc } = dlopen('libc.so.6', {
  prctl: { args: [i32, u64, u64, u64, u64], returns: i32 },
  execvp: { args: [pointer, pointer], returns: i32 },
})

/** linux/prctl.h, linux/seccomp.h, linux/bpf_common.h. */
const PR_SET_SECCOMP = 22
const PR_SET_NO_NEW_PRIVS = 38
const SECCOMP_MODE_FILTER = 2
const SECCOMP_RET_ERRNO = 0x0005_0000
const SECCOMP_RET_ALLOW = 0x7fff_0000
const LOAD_WORD = 0x20
const JUMP_IF_EQUAL = 0x15
const JUMP_IF_SET = 0x45
const RETURN = 0x06
/** Of `struct seccomp_data`: the number, and the lower halves of the second and third argument. */
const [NUMBER, REQUEST, ARGUMENT] = [0, 24, 32]
const IOCTL = arch() === 'arm64' ? 29 : 16

const filter = (errno: number, flags: number): Uint8Array => {
  const program: readonly (readonly [code: number, ifTrue: number, ifFalse: number, k: number])[] = [
    [LOAD_WORD, 0, 0, NUMBER],
    [JUMP_IF_EQUAL, 0, 5, IOCTL],
    [LOAD_WORD, 0, 0, REQUEST],
    [JUMP_IF_EQUAL, 0, 3, TUNSETOFFLOAD],
    [LOAD_WORD, 0, 0, ARGUMENT],
    flags === 0 ? [JUMP_IF_SET, 0, 0, 0] : [JUMP_IF_SET, 0, 1, flags],
    [RETURN, 0, 0, SECCOMP_RET_ERRNO | errno],
    [RETURN, 0, 0, SECCOMP_RET_ALLOW],
  ]
  const view = new DataView(new ArrayBuffer(program.length * 8))
  for (const [index, [code, ifTrue, ifFalse, k]] of program.entries()) {
    view.setUint16(index * 8, code, true)
    view.setUint8(index * 8 + 2, ifTrue)
    view.setUint8(index * 8 + 3, ifFalse)
    view.setUint32(index * 8 + 4, k, true)
  }
  return new Uint8Array(view.buffer)
}

const [errno, flags, ...command] = process.argv.slice(2)
const instructions = filter(Number(errno), Number(flags))
// struct sock_fprog
const program = new BigUint64Array([BigInt(instructions.length / 8), BigInt(ptr(instructions))])
if (libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) !== 0) throw new Error('PR_SET_NO_NEW_PRIVS')
if (libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ptr(program), 0, 0) !== 0) throw new Error('PR_SET_SECCOMP')
const words = command.map((word) => Buffer.from(`${word}\0`))
const argv = new BigUint64Array([...words.map((word) => BigInt(ptr(word))), 0n])
libc.execvp(ptr(words[0]!), ptr(argv))
throw new Error(`${command[0]}: cannot be run`)
