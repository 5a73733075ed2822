/**
 * `bun conformance.js PATH TAP [NUMBER...]`: runs the list of conformance tests, or those items of it, as the driver of
 * the card behind a /dev/vhost-vdpa-N. Prints a line of JSON, an {@link Outcome}, for each item, and ends with 0
 * however they are.
 */
import { fstatSync, readdirSync, readFileSync } from 'node:fs'
import { applicable, numberIn } from '../conformance/item.ts'
import { items } from '../conformance/items.ts'
import { type VduseBench, vduseItems } from '../conformance/vduse-items.ts'
import { GUEST_MEMFD_NAME } from '../guest-memory.ts'
import { PacketSocket } from '../packet-socket.ts'
import { VhostVdpaLink } from './vhost-vdpa-link.ts'

/** How an item went; what was wrong, or null. */
export type Outcome = { readonly title: string; readonly failure: string | null }

const [path = '', tap = '', ...numbers] = process.argv.slice(2)

const cardPid = (): string => {
  const pid = readdirSync('/proc').find((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/comm`, 'utf8') === 'vduse-net\n'
    } catch {
      // It has ended since the folder was read.
      return false
    }
  })
  if (pid === undefined) throw new Error('no card runs')
  return pid
}

const offloads = new PacketSocket(null, tap, { offloads: true })
const bench: VduseBench = {
  transport: 'vhost-vdpa',
  layout: 'split',
  wire: new PacketSocket(null, tap),
  sendOffloaded: (header, frame) => offloads.sendOffloaded(header, frame),
  setTapMtu: (mtu) => {
    const { exitCode, stderr } = Bun.spawnSync(['ip', 'link', 'set', tap, 'mtu', String(mtu)])
    if (exitCode !== 0) throw new Error(stderr.toString())
  },
  connect: (memoryBytes = 1 << 22) => new VhostVdpaLink(path, memoryBytes),
  mapsOf: (memory) => {
    // Address, rights, offset, device, inode, name.
    const inode = String(fstatSync(memory.fd).ino)
    const lines = readFileSync(`/proc/${cardPid()}/maps`, 'utf8').split('\n')
    return lines.filter((line) => line.includes(GUEST_MEMFD_NAME) && line.split(/\s+/)[4] === inode).length
  },
}

for (const item of [...applicable(items, 'split', 'vhost-vdpa'), ...vduseItems]) {
  if (numbers.length > 0 && !numbers.includes(String(numberIn(item.title)))) continue
  let failure: string | null = null
  try {
    item.run(bench)
  } catch (error) {
    failure = error instanceof Error ? Bun.stripANSI(error.stack ?? error.message) : String(error)
  }
  console.log(JSON.stringify({ title: item.title, failure } satisfies Outcome))
}
