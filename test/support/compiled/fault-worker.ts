import { OwnedMapping } from '../../../src/sys/mapping.ts'
import { native } from '../../../src/sys/native.ts'
import { ScratchFile } from '../scratch-file.ts'

declare const self: Worker

const PAGE = 4096
const file = new ScratchFile(PAGE)
// The next free slot: the mapping takes it.
const slot = native.vn_guard_add(PAGE, PAGE, PAGE)
native.vn_guard_remove(slot)
const mapping = new OwnedMapping(file.fd, PAGE)
const words = new Uint32Array(mapping.buffer(0, PAGE)).fill(7)
file.truncate(0)
self.postMessage({ slot, hits: words[0] === 0 ? mapping.guardHits() : -1 })
