import { createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'

const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000

/** One member of an archive. Paths are absolute in the guest. */
export type CpioEntry =
  | { path: string; mode: number; content: Uint8Array }
  | { path: string; link: string }
  | { path: string; folder: true }

const padding = (lengthBytes: number): Uint8Array => new Uint8Array(-lengthBytes & 3)

/** Header, name and padding of one member: Documentation/driver-api/early-userspace/buffer-format.rst, "newc". */
const header = (path: string, inode: number, mode: number, sizeBytes: number): Buffer => {
  const name = `${path.replace(/^\//, '')}\0`
  const fields = [inode, mode, 0, 0, 1, 0, sizeBytes, 0, 0, 0, 0, Buffer.byteLength(name), 0]
  const bytes = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}`)
  return Buffer.concat([bytes, padding(bytes.length)])
}

/** The folders above `path`, outermost first. */
const parents = (path: string): string[] => {
  const parts = path.replace(/^\//, '').split('/').slice(0, -1)
  return parts.map((_, i) => `/${parts.slice(0, i + 1).join('/')}`)
}

/** An initramfs archive, owned by root throughout, piece by piece. Folders above a member are added where missing. */
export function* cpio(entries: Iterable<CpioEntry>): Generator<Uint8Array> {
  const seen = new Set<string>()
  let inode = 1
  for (const entry of entries) {
    // Not twice: a link where a folder is expected (/bin) must stay a link.
    for (const folder of parents(entry.path)) {
      if (seen.has(folder)) continue
      seen.add(folder)
      yield header(folder, inode++, S_IFDIR | 0o755, 0)
    }
    seen.add(entry.path)
    if ('folder' in entry) {
      yield header(entry.path, inode++, S_IFDIR | 0o755, 0)
    } else {
      const link = 'link' in entry
      const content = link ? Buffer.from(entry.link) : entry.content
      yield header(entry.path, inode++, link ? S_IFLNK | 0o777 : S_IFREG | entry.mode, content.length)
      yield content
      yield padding(content.length)
    }
  }
  yield header('TRAILER!!!', 0, 0, 0)
}

/** Writes an archive to `path`, or appends it to the one there: the kernel unpacks both, the later on top. */
export const writeCpio = async (path: string, entries: Iterable<CpioEntry>, flags: 'w' | 'a'): Promise<void> => {
  await pipeline(cpio(entries), createWriteStream(path, { flags }))
}
