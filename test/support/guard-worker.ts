import { OwnedMapping } from '../../src/sys/mapping.ts'
import { native } from '../../src/sys/native.ts'
import { ScratchFile } from './scratch-file.ts'

/** Loses its memory in a Worker; the mapping stays, so that the main thread can look at the slot. */
declare const self: Worker

const PAGE = 4096
const file = new ScratchFile(2 * PAGE)
// The next free slot: the mapping takes it.
const slot = native.vn_guard_add(PAGE, PAGE, PAGE)
native.vn_guard_remove(slot)
const mapping = new OwnedMapping(file.fd, 2 * PAGE)
const bytes = new Uint8Array(mapping.buffer(0, 2 * PAGE)).fill(7)
file.truncate(0)
const sum = bytes.reduce((total, byte) => total + byte, 0)
self.postMessage({ slot, sum, hits: mapping.guardHits() })
