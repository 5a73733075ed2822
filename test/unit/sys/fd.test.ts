import { describe, expect, test } from 'bun:test'
import { constants as fsConstants, fstatSync, readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { OwnedFd, open, openRaw } from '../../../src/sys/fd.ts'
import { native } from '../../../src/sys/native.ts'

const { ENOENT, EBADF, EAGAIN } = constants.errno

describe('OwnedFd', () => {
  test('closes once', () => {
    const file = open('/dev/null')
    const { fd } = file
    expect(fstatSync(fd).isCharacterDevice()).toBe(true)
    file[Symbol.dispose]()
    expect(native.vn_close(fd)).toBe(-EBADF)
    file[Symbol.dispose]()
    expect(file.isOpen).toBe(false)
    expect(() => file.fd).toThrow('closed')
  })

  test('releases to a new owner', () => {
    const file = open('/dev/null')
    const fd = file.release()
    file[Symbol.dispose]()
    using again = new OwnedFd(fd)
    expect(fstatSync(again.fd).isCharacterDevice()).toBe(true)
    expect(() => file.release()).toThrow('closed')
  })

  test('is closed on exec', () => {
    using file = open('/dev/null')
    expect(fdFlags(file.fd) & 0o2000000).toBe(0o2000000)
  })
})

describe('open', () => {
  test('gives the errno, raw or thrown', () => {
    expect(openRaw('/nowhere/at/all', fsConstants.O_RDONLY)).toBe(-ENOENT)
    expect(() => open('/nowhere/at/all')).toThrow('open /nowhere/at/all: ENOENT')
    expect(() => open('/dev/null\0/etc')).toThrow('NUL')
  })
})

describe('system calls', () => {
  test('read and write count bytes, and set_nonblock makes a read of nothing EAGAIN', () => {
    using master = open('/dev/ptmx')
    expect(native.vn_set_nonblock(master.fd, 1)).toBe(0)
    expect(fdFlags(master.fd) & fsConstants.O_NONBLOCK).toBe(fsConstants.O_NONBLOCK)
    expect(native.vn_read(master.fd, new Uint8Array(4), 4)).toBe(-EAGAIN)
    expect(native.vn_set_nonblock(master.fd, 0)).toBe(0)
    expect(fdFlags(master.fd) & fsConstants.O_NONBLOCK).toBe(0)
    using sink = open('/dev/null')
    expect(native.vn_write(sink.fd, new Uint8Array(10), 7)).toBe(7)
  })

  test('ioctl numbers above 2^31 arrive whole', () => {
    using master = open('/dev/ptmx')
    const number = new Uint32Array([0xffffffff])
    // TIOCGPTN of asm-generic/ioctls.h is _IOR('T', 0x30, unsigned int).
    expect(native.vn_ioctl(master.fd, 0x80045430, number)).toBe(0)
    expect(number[0]).toBeLessThan(0xffffffff)
    expect(native.vn_ioctl(master.fd, 0x80045431, number)).toBeLessThan(0)
  })
})

/** Flags of the open file, as octal digits in /proc. */
const fdFlags = (fd: number): number =>
  Number.parseInt(/^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8)
