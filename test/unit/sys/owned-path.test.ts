import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../../../scripts/frontends/native-process.ts'
import { listenForFrontends } from '../../../src/card/listen-for-frontends.ts'
import { writePidFile } from '../../../src/cli/pid-file.ts'
import { native } from '../../../src/sys/native.ts'
import { watchOwnedPaths } from '../../../src/sys/owned-path.ts'
import { connectUnix, isSocketServed, listenUnix } from '../../../src/sys/unix-socket.ts'
import { TEST_MS } from '../../support/patience.ts'

setDefaultTimeout(TEST_MS)

const program = join(import.meta.dir, '../../support/owned-path-program.ts')

let folder: string
let paths: readonly [string, string, string]

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vduse-net-owned-'))
  paths = [join(folder, 'card.pid'), join(folder, 'card.sock'), join(folder, 'run/admin.sock')]
})

afterEach(() => rmSync(folder, { recursive: true }))

const spawn = () => Bun.spawn([process.execPath, program, ...paths], { stdio: ['pipe', 'pipe', 'pipe'] })
type Program = ReturnType<typeof spawn>

const ready = async (child: Program): Promise<void> => {
  const { value } = await child.stdout.getReader().read()
  if (value === undefined) throw new Error(await new Response(child.stderr).text())
}

const all = (): string[] =>
  [folder, join(folder, 'run')].flatMap((at) => (existsSync(at) ? readdirSync(at) : [])).sort()

describe('pid file, socket and admin socket', () => {
  test('one process after the other, each started while the one before ends: 100 times', async () => {
    let before: Program | null = null
    for (let round = 0; round < 100; round++) {
      const child = spawn()
      // It ends while the next one starts, a little sooner or later each time.
      before?.stdin.end()
      await ready(child)
      await before?.exited
      expect([round, all()]).toEqual([round, ['admin.sock', 'card.pid', 'card.sock', 'run']])
      expect(readFileSync(paths[0], 'utf8')).toBe(`${child.pid}\n`)
      for (const socket of paths.slice(1)) {
        const fd = connectUnix(socket)
        expect(fd).toBeGreaterThan(0)
        native.vn_close(fd)
      }
      before = child
    }
    before?.stdin.end()
    expect(await before?.exited).toBe(0)
    expect(all()).toEqual([])
  }, 300_000)

  test('a process that is killed leaves them, and the next one replaces them', async () => {
    for (let round = 0; round < 3; round++) {
      const child = spawn()
      await ready(child)
      child.kill('SIGKILL')
      await child.exited
      expect(all()).toHaveLength(4)
      writeFileSync(`${paths[0]}.~12345`, '')
    }
    const child = spawn()
    await ready(child)
    child.stdin.end()
    expect(await child.exited).toBe(0)
    expect(all()).toEqual(['run'])
  })

  test('a second process is refused, and the names of the first stay', async () => {
    const child = spawn()
    await ready(child)
    await expect(writePidFile(paths[0])).rejects.toThrow(`process ${child.pid} runs and has written it`)
    await expect(listenForFrontends(paths[1])).rejects.toThrow('another process listens there')
    const second = spawn()
    expect(await second.exited).not.toBe(0)
    expect(all()).toEqual(['admin.sock', 'card.pid', 'card.sock', 'run'])
    expect(readFileSync(paths[0], 'utf8')).toBe(`${child.pid}\n`)
    child.stdin.end()
    expect(await child.exited).toBe(0)
  })

  test('what somebody else has put there meanwhile stays', async () => {
    const pid = await writePidFile(paths[0])
    writeFileSync(`${paths[0]}.other`, '1\n')
    renameSync(`${paths[0]}.other`, paths[0])
    const { fd, name } = await listenForFrontends(paths[1])
    rmSync(paths[1])
    writeFileSync(paths[1], 'other')
    pid[Symbol.dispose]()
    name?.[Symbol.dispose]()
    fd[Symbol.dispose]()
    expect(all()).toEqual(['card.pid', 'card.sock'])
    expect(readFileSync(paths[1], 'utf8')).toBe('other')
  })

  test('each that is deleted or replaced while the process runs is told once', async () => {
    using _pid = await writePidFile(paths[0])
    const { fd, name } = await listenForFrontends(paths[1])
    using _fd = fd
    using _name = name!
    using _other = await writePidFile(join(folder, 'other.pid'))
    const lost: string[] = []
    using _watch = watchOwnedPaths((path) => lost.push(path), 1)
    rmSync(paths[1])
    await until('the socket to be missed', () => lost.length > 0)
    writeFileSync(`${paths[0]}.other`, '1\n')
    renameSync(`${paths[0]}.other`, paths[0])
    await until('the pid file to be missed', () => lost.length > 1)
    // A folder that is gone takes the rest with it.
    renameSync(folder, `${folder}.away`)
    await until('all to be missed', () => lost.length > 2)
    renameSync(`${folder}.away`, folder)
    expect(lost).toEqual([paths[1], paths[0], join(folder, 'other.pid')])
  })

  test('neither a link nor another file is followed, overwritten or removed', async () => {
    writeFileSync(join(folder, 'precious'), 'data')
    symlinkSync('precious', paths[0])
    symlinkSync('precious', paths[1])
    await expect(writePidFile(paths[0])).rejects.toThrow('no regular file')
    await expect(listenForFrontends(paths[1])).rejects.toThrow('a symbolic link and no socket')
    await expect(writePidFile(join(folder, 'precious'))).rejects.toThrow('something else than a process id')
    await expect(listenForFrontends(join(folder, 'precious'))).rejects.toThrow('a file and no socket')
    await expect(writePidFile('/dev/null')).rejects.toThrow('no regular file')
    await expect(writePidFile(folder)).rejects.toThrow('no regular file')
    await expect(listenForFrontends(folder)).rejects.toThrow('a folder and no socket')
    expect(readFileSync(join(folder, 'precious'), 'utf8')).toBe('data')
    expect(all()).toEqual(['card.pid', 'card.sock', 'precious'])
  })

  test('a folder that is not there', async () => {
    await expect(writePidFile(join(folder, 'no/card.pid'))).rejects.toThrow('ENOENT')
    await expect(listenForFrontends(join(folder, 'no/card.sock'))).rejects.toThrow('ENOENT')
  })
})

describe('abstract sockets', () => {
  const name = `@vduse-net-test-${process.pid}`

  test('are served and connected to, make no file, and are refused while another process has them', async () => {
    const listening = await listenForFrontends(name)
    expect(listening.name).toBeNull()
    expect(existsSync(name)).toBeFalse()
    const fd = connectUnix(name)
    expect(fd).toBeGreaterThan(0)
    native.vn_close(fd)
    expect(readFileSync('/proc/net/unix', 'utf8')).toMatch(new RegExp(` ${name}$`, 'm'))
    await expect(listenForFrontends(name)).rejects.toThrow('another process listens there')
    listening.fd[Symbol.dispose]()
    expect(connectUnix(name)).toBeLessThan(0)
  })
})

test('whether a socket is served is asked without a connection', () => {
  const path = join(folder, 'socket')
  expect(isSocketServed(path)).toBeFalse()
  const fd = listenUnix(path)
  expect(isSocketServed(path)).toBeTrue()
  expect(native.vn_accept(fd)).toBeLessThan(0)
  native.vn_close(fd)
  expect(isSocketServed(path)).toBeFalse()
})
