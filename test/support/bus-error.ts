import { type Pointer, toArrayBuffer } from 'bun:ffi'
import { check, native } from '../../src/sys/native.ts'
import { ScratchFile } from './scratch-file.ts'

/** A process that dies of SIGBUS, though the guard is installed. `process.argv[2]` says how. */
const PAGE = 4096
const file = new ScratchFile(PAGE)
check('install', native.vn_guard_install())
const address = check('mmap', native.vn_mmap(file.fd, PAGE, 0, 3))
if (process.argv[2] === 'removed') native.vn_guard_remove(check('add', native.vn_guard_add(address, PAGE, PAGE)))
console.log('before')
if (process.argv[2] === 'sent') process.kill(process.pid, 'SIGBUS')
file.truncate(0)
console.log(new Uint8Array(toArrayBuffer(address as Pointer, 0, PAGE))[0])
