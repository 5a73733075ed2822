import { describe, expect, test } from 'bun:test'
import { mkdirSync, readdirSync, readFileSync, readlinkSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { unpackDeb } from '../../../scripts/lab/apt.ts'
import { containLinks } from '../../../scripts/lab/root-links.ts'
import { temporaryFolder } from '../../../scripts/lab/temporary.ts'

type Tree = Record<string, string | { link: string }>

/** Makes files and links below `root`: path -> content or target. */
const plant = (root: string, tree: Tree): void => {
  for (const [path, what] of Object.entries(tree)) {
    mkdirSync(join(root, dirname(path)), { recursive: true })
    if (typeof what === 'string') writeFileSync(join(root, path), what)
    else symlinkSync(what.link, join(root, path))
  }
}

/** All links below `root` that are absolute, or name a place outside. */
const leaving = (root: string, folder = realpathSync(root)): string[] =>
  readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return leaving(root, path)
    if (!entry.isSymbolicLink()) return []
    const target = readlinkSync(path)
    const leaves = target.startsWith('/') || relative(realpathSync(root), join(folder, target)).startsWith('..')
    return leaves ? [path] : []
  })

describe('links of an unpacked root', () => {
  test.each([
    ['/lib/x86_64-linux-gnu/ld.so', '../lib/x86_64-linux-gnu/ld.so'],
    ['//lib/./x86_64-linux-gnu//ld.so', '../lib/x86_64-linux-gnu/ld.so'],
    ['/usr/../lib/x86_64-linux-gnu/ld.so', '../lib/x86_64-linux-gnu/ld.so'],
    ['../../../../lib/x86_64-linux-gnu/ld.so', '../lib/x86_64-linux-gnu/ld.so'],
    ['../../lib64/../lib/x86_64-linux-gnu/ld.so', '../lib/x86_64-linux-gnu/ld.so'],
    // What is right stays as it is.
    ['../lib/x86_64-linux-gnu/ld.so', '../lib/x86_64-linux-gnu/ld.so'],
    ['../lib/../lib/x86_64-linux-gnu/ld.so', '../lib/../lib/x86_64-linux-gnu/ld.so'],
  ])('%p in lib64 becomes %p, which is the file of the root', (target, expected) => {
    using folder = temporaryFolder(tmpdir(), 'vduse-net-test-links-')
    plant(folder.path, { 'lib/x86_64-linux-gnu/ld.so': 'the loader', 'usr/x': '', 'lib64/ld.so': { link: target } })
    containLinks(folder.path)
    expect(readlinkSync(join(folder.path, 'lib64/ld.so'))).toBe(expected)
    expect(readFileSync(join(folder.path, 'lib64/ld.so'), 'utf8')).toBe('the loader')
    expect(leaving(folder.path)).toEqual([])
    expect(containLinks(folder.path)).toBe(0)
  })

  test('folders behind absolute links, chains of links, and targets that are not there', () => {
    using folder = temporaryFolder(tmpdir(), 'vduse-net-test-links-')
    const tree = {
      'usr/lib/a/file': 'content',
      lib: { link: '/usr/lib' },
      'usr/share/here': { link: '/lib/a/file' },
      'usr/share/there': { link: '/usr/share/here' },
      // By way of a linked folder `..` is the parent of where it leads.
      'usr/share/up': { link: '/lib/../lib/a/file' },
      'etc/mtab': { link: '/proc/mounts' },
      'etc/root': { link: '/' },
      'etc/passwd': { link: '../../../../../../../../etc/passwd' },
      'dev/null': { link: '/dev/null' },
    } satisfies Tree
    plant(folder.path, tree)
    expect(leaving(folder.path).length).toBeGreaterThan(5)
    containLinks(folder.path)
    expect(leaving(folder.path)).toEqual([])
    for (const path of ['lib/a/file', 'usr/share/here', 'usr/share/there', 'usr/share/up', 'etc/root/usr/lib/a/file']) {
      expect(readFileSync(join(folder.path, path), 'utf8')).toBe('content')
    }
    expect(readlinkSync(join(folder.path, 'etc/mtab'))).toBe('../proc/mounts')
    expect(readlinkSync(join(folder.path, 'etc/passwd'))).toBe('passwd')
  })

  test('a folder that leads to itself ends the search, not the program', () => {
    using folder = temporaryFolder(tmpdir(), 'vduse-net-test-links-')
    plant(folder.path, { a: { link: '/b' }, b: { link: '/a' }, c: { link: '/a/x' } })
    containLinks(folder.path)
    expect(leaving(folder.path)).toEqual([])
  })

  test('the unpacker leaves none in a package, nor writes through one', async () => {
    using folder = temporaryFolder(tmpdir(), 'vduse-net-test-links-')
    const outside = join(folder.path, 'outside')
    mkdirSync(outside)
    const pack = (name: string, tree: Tree): string => {
      const source = join(folder.path, `${name}.source`)
      const control =
        `Package: ${name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody ` +
        '<nobody@localhost>\nDescription: a test\n'
      plant(source, { 'DEBIAN/control': control, ...tree })
      const deb = join(folder.path, `${name}.deb`)
      const made = Bun.spawnSync(['dpkg-deb', '--root-owner-group', '--build', source, deb])
      if (!made.success) throw new Error(made.stderr.toString())
      return deb
    }
    const target = join(folder.path, 'target')
    mkdirSync(target)
    const loader = { link: '/lib/x86_64-linux-gnu/ld.so' }
    await unpackDeb(pack('one', { 'lib/x86_64-linux-gnu/ld.so': '2.36', 'lib64/ld.so': loader }), target)
    await unpackDeb(pack('two', { away: { link: outside } }), target)
    expect(leaving(target)).toEqual([])
    expect(readFileSync(join(target, 'lib64/ld.so'), 'utf8')).toBe('2.36')
    await unpackDeb(pack('three', { 'away/file': 'content' }), target).catch(() => {})
    expect(readdirSync(outside)).toEqual([])
  })
})
