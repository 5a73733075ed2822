import { dropReasons } from '../abi/drop-reason.ts'
import { flatten, type Layout } from '../abi/layout.ts'
import * as linux from '../abi/linux.ts'
import * as netlink from '../abi/netlink.ts'
import { RECEIVE_FILTER } from '../abi/receive-filter.ts'
import { SCALING } from '../abi/receive-scaling.ts'
import * as rtnetlink from '../abi/rtnetlink.ts'
import * as tun from '../abi/tun.ts'
import * as vdpa from '../abi/vdpa.ts'
import * as vduse from '../abi/vduse.ts'
import * as virtio from '../abi/virtio.ts'
import * as virtioNet from '../abi/virtio-net.ts'
import * as virtioRing from '../abi/virtio-ring.ts'
import { RX_STOP, VN_IO, VN_IO_WORDS } from '../abi/vn-io.ts'
import { AssertionError, assert } from '../base/assert.ts'
import { native } from './native.ts'

/** The JSON of `vn_abi`: zig/abi.zig. */
export type AbiTable = {
  /** The optimisation mode of the library. */
  readonly mode: string
  readonly structs: {
    readonly [name: string]: { readonly size: number; readonly fields: { readonly [path: string]: number } }
  }
  readonly constants: { readonly [name: string]: number }
  readonly dropReasons: readonly string[]
  readonly rxStops: readonly string[]
}

/** The table of the loaded library. */
export const nativeAbi = (): AbiTable => {
  const text = native.vn_abi()
  assert(text !== null, 'vn_abi')
  return JSON.parse(text)
}

/** Every module of src/abi that repeats a header of the kernel. */
export const headerModules: readonly { readonly [name: string]: unknown }[] = [
  linux,
  netlink,
  rtnetlink,
  tun,
  vdpa,
  vduse,
  virtio,
  virtioNet,
  virtioRing,
]

/** Limits of the specification that no header has. */
const notInHeaders: ReadonlySet<string> = new Set(['VRING_SPLIT_SIZE_MAX', 'VRING_PACKED_SIZE_MAX'])

/** Offsets of a layout made by layout.ts or written by hand. */
const offsetsOf = (layout: object): ReadonlyMap<string, number> =>
  'asField' in layout
    ? flatten(layout as Layout<Record<never, never>>)
    : new Map(Object.entries(layout).filter(([name]) => name !== 'sizeBytes'))

const snakeCase = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

/** `error` is a keyword of Zig. */
const rxStopName = (name: string): string => (name === 'error' ? 'failed' : snakeCase(name))

type Comparison = {
  /** Sentences about what both sides declare differently. */
  readonly mismatches: readonly string[]
  /** Names in C of what only one side declares. */
  readonly unmatched: readonly string[]
}

/** Compares src/abi with the table. */
export const compareAbi = (table: AbiTable): Comparison => {
  const mismatches: string[] = []
  const onlyOurs: string[] = []
  const unseen = new Set([...Object.keys(table.constants), ...Object.keys(table.structs)])
  const compare = (what: string, ours: unknown, theirs: unknown): void => {
    if (theirs === undefined) onlyOurs.push(what)
    else if (ours !== theirs)
      mismatches.push(`${what} is ${String(ours)} in TypeScript and ${String(theirs)} in the library`)
  }
  const compareStruct = (name: string, sizeBytes: unknown, offsets: Iterable<readonly [string, number]>): void => {
    const theirs = table.structs[name]
    unseen.delete(name)
    compare(name, sizeBytes, theirs?.size)
    for (const [path, offset] of offsets) compare(`${name}.${path}`, offset, theirs?.fields[path])
  }

  for (const module of headerModules) {
    for (const [name, value] of Object.entries(module)) {
      if (typeof value === 'number' && !notInHeaders.has(name)) {
        unseen.delete(name)
        compare(name, value, table.constants[name])
      } else if (typeof value === 'object' && value !== null && 'sizeBytes' in value) {
        compareStruct(name.toLowerCase(), value.sizeBytes, offsetsOf(value))
      }
    }
  }
  compareStruct(
    'vn_io',
    VN_IO_WORDS * 4,
    Object.entries(VN_IO).map(([name, word]) => [snakeCase(name), word * 4]),
  )
  for (const layout of [RECEIVE_FILTER, SCALING]) compareStruct(layout.cName, layout.sizeBytes, offsetsOf(layout))
  compare('drop reasons', dropReasons.join(), table.dropReasons.join())
  const rxStops = Object.entries(RX_STOP).sort(([, a], [, b]) => a - b)
  compare('rx stops', rxStops.map(([name]) => rxStopName(name)).join(), table.rxStops.join())
  return { mismatches, unmatched: [...onlyOurs, ...unseen] }
}

/**
 * Checks that TypeScript and the library agree on every shared layout and constant. Called once at the start. Throws
 * AssertionError with the mismatches: the library belongs to another version of the program.
 */
export const checkAbi = (): void => {
  const { mismatches } = compareAbi(nativeAbi())
  if (mismatches.length > 0) throw new AssertionError(`the native library does not fit: ${mismatches.join('; ')}`)
}
