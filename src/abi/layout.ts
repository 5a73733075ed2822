/**
 * C structs as offsets. A layout is declared field by field in the header's order and with the header's names; offsets
 * follow from the C rules (natural alignment, packed on request), so that a layout here reads like the struct there:
 *
 *     const VDUSE_VQ_EVENTFD = struct('vduse_vq_eventfd', { index: u32, fd: i32 })
 *     view.setInt32(VDUSE_VQ_EVENTFD.fd, fd, true)
 *
 * Every field is a property with its offset in bytes, a nested struct's fields are properties of that property, and
 * `sizeBytes` is sizeof. Little-endian hosts only: x86-64 and arm64.
 */

/** What a field is. `size` and `align` in bytes. */
type Scalar = { readonly kind: 'scalar'; readonly size: number; readonly align: number }
type Nested<F extends Fields> = {
  readonly kind: 'nested'
  readonly size: number
  readonly align: number
  readonly fields: F
}
type Field = Scalar | Nested<Fields>
type Fields = { readonly [name: string]: Field }

type OffsetOf<F extends Field> = F extends Nested<infer Inner> ? Offsets<Inner> : number
type Offsets<F extends Fields> = { readonly [Name in keyof F]: OffsetOf<F[Name]> }

/** Offsets of a struct's fields, its size, and its name in C. */
export type Layout<F extends Fields> = Offsets<F> & {
  readonly sizeBytes: number
  readonly cName: string
  /** The struct as a field of another one. */
  readonly asField: Nested<F>
}

const scalar = (bytes: number): Scalar => ({ kind: 'scalar', size: bytes, align: bytes })

export const u8 = scalar(1)
export const u16 = scalar(2)
export const u32 = scalar(4)
export const u64 = scalar(8)
export const i32 = scalar(4)

/** `count` elements; 0 for a flexible array at the end. The offset is that of the first. */
export const array = (element: Scalar, count: number): Scalar => ({
  kind: 'scalar',
  size: element.size * count,
  align: element.align,
})

const roundUp = (value: number, to: number): number => Math.ceil(value / to) * to

const nested = <F extends Fields>(fields: F, size: number): Nested<F> => {
  const align = Math.max(...Object.values(fields).map((field) => field.align))
  return { kind: 'nested', size: roundUp(size, align), align, fields }
}

/** A union without a name in C: all its members start where it does. */
export const union = <F extends Fields>(fields: F): Nested<F> & { readonly union: true } => ({
  ...nested(fields, Math.max(...Object.values(fields).map((field) => field.size))),
  union: true,
})

const offsetsOf = (fields: Fields, isUnion: boolean, isPacked: boolean, base: number): [object, number] => {
  const offsets: Record<string, unknown> = {}
  let at = 0
  for (const [name, field] of Object.entries(fields)) {
    if (!isPacked) at = roundUp(at, field.align)
    offsets[name] = field.kind === 'nested' ? offsetsOf(field.fields, 'union' in field, false, base + at)[0] : base + at
    if (!isUnion) at += field.size
  }
  return [Object.freeze(offsets), at]
}

const layout = <F extends Fields>(cName: string, fields: F, isPacked: boolean): Layout<F> => {
  const [offsets, end] = offsetsOf(fields, false, isPacked, 0)
  const asField = nested(fields, end)
  const sizeBytes = isPacked ? end : asField.size
  return Object.freeze({ ...offsets, sizeBytes, cName, asField }) as Layout<F>
}

/** The layout of `struct cName`. */
export const struct = <const F extends Fields>(cName: string, fields: F): Layout<F> => layout(cName, fields, false)

/** The layout of `struct cName`, declared `__attribute__((packed))`. */
export const packedStruct = <const F extends Fields>(cName: string, fields: F): Layout<F> => layout(cName, fields, true)

const flattenFields = (fields: Fields, offsets: object, prefix: string, flat: Map<string, number>): void => {
  for (const [name, field] of Object.entries(fields)) {
    const offset: unknown = offsets[name as keyof typeof offsets]
    if (field.kind === 'nested')
      flattenFields(field.fields, offset as object, 'union' in field ? prefix : `${prefix}${name}.`, flat)
    else flat.set(prefix + name, offset as number)
  }
}

/** Offsets of all fields by their name in C: `outer.inner` for a nested struct's; a union has no name there. */
export const flatten = (layout: { readonly asField: Nested<Fields> }): ReadonlyMap<string, number> => {
  const flat = new Map<string, number>()
  flattenFields(layout.asField.fields, layout, '', flat)
  return flat
}
