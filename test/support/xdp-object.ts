/**
 * The smallest object file that `ip link set … xdp obj` loads: one program that passes every packet on. elf.h,
 * linux/bpf.h.
 */

const SHT = { progbits: 1, symtab: 2, strtab: 3 } as const
const SHF_ALLOC_EXECINSTR = 6
const EM_BPF = 247
const HEADER_BYTES = 64
const SECTION_BYTES = 64
const SYMBOL_BYTES = 24
const XDP_PASS = 2

const align = (bytes: number): number => Math.ceil(bytes / 8) * 8
const text = (...words: readonly string[]): Uint8Array => Buffer.from(words.map((word) => `${word}\0`).join(''))

/** `r0 = XDP_PASS; exit`. */
const program = new Uint8Array([0xb7, 0, 0, 0, XDP_PASS, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])

const symbols = (): Uint8Array => {
  const bytes = new Uint8Array(2 * SYMBOL_BYTES)
  const view = new DataView(bytes.buffer, SYMBOL_BYTES)
  // The name behind the empty one; a global function in section 1.
  view.setUint32(0, 1, true)
  view.setUint8(4, (1 << 4) | 2)
  view.setUint16(6, 1, true)
  view.setBigUint64(16, BigInt(program.length), true)
  return bytes
}

type Section = {
  readonly name: string
  readonly type: number
  readonly content: Uint8Array
  readonly flags?: number
  readonly link?: number
  readonly info?: number
  readonly entryBytes?: number
}

/** The file's content, with the program in section `xdp`. */
export const xdpPassObject = (): Uint8Array => {
  const names = ['', 'xdp', 'license', '.symtab', '.strtab']
  const sections: readonly Section[] = [
    { name: 'xdp', type: SHT.progbits, content: program, flags: SHF_ALLOC_EXECINSTR },
    { name: 'license', type: SHT.progbits, content: text('GPL'), flags: 3 },
    { name: '.symtab', type: SHT.symtab, content: symbols(), link: 4, info: 1, entryBytes: SYMBOL_BYTES },
    // Of symbols and of sections.
    { name: '.strtab', type: SHT.strtab, content: text('', 'pass', ...names.slice(1)) },
  ]
  const nameAt = (name: string): number => 1 + text('pass', ...names.slice(1, names.indexOf(name))).length
  const offsets: number[] = []
  let at = HEADER_BYTES
  for (const { content } of sections) {
    offsets.push(at)
    at = align(at + content.length)
  }
  const bytes = new Uint8Array(at + (sections.length + 1) * SECTION_BYTES)
  const view = new DataView(bytes.buffer)
  // ELF64, little-endian, version 1; relocatable.
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  view.setUint16(16, 1, true)
  view.setUint16(18, EM_BPF, true)
  view.setUint32(20, 1, true)
  view.setBigUint64(40, BigInt(at), true)
  view.setUint16(52, HEADER_BYTES, true)
  view.setUint16(58, SECTION_BYTES, true)
  view.setUint16(60, sections.length + 1, true)
  view.setUint16(62, sections.length, true)
  for (const [index, { name, type, content, flags = 0, link = 0, info = 0, entryBytes = 0 }] of sections.entries()) {
    const offset = offsets[index]!
    bytes.set(content, offset)
    const header = new DataView(bytes.buffer, at + (index + 1) * SECTION_BYTES)
    header.setUint32(0, nameAt(name), true)
    header.setUint32(4, type, true)
    header.setBigUint64(8, BigInt(flags), true)
    header.setBigUint64(24, BigInt(offset), true)
    header.setBigUint64(32, BigInt(content.length), true)
    header.setUint32(40, link, true)
    header.setUint32(44, info, true)
    header.setBigUint64(48, 8n, true)
    header.setBigUint64(56, BigInt(entryBytes), true)
  }
  return bytes
}
