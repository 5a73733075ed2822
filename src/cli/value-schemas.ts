import { z } from 'zod'
import { parseListenAddress } from '../base/listen-address.ts'
import { formatMac, parseMac, refuseMac } from '../base/mac.ts'

/** Why a value is invalid. */
export class Refusal {
  readonly why: string
  constructor(why: string) {
    this.why = why
  }
}

/**
 * A schema of one flag's text: `parse` returns the value, or a {@link Refusal} that becomes the schema's only issue.
 */
export const textSchema = <T>(parse: (text: string) => T | Refusal): z.ZodType<T, string> =>
  z.string().transform((text, context) => {
    const value = parse(text)
    if (!(value instanceof Refusal)) return value
    context.addIssue({ code: 'custom', message: value.why })
    return z.NEVER
  })

/** A decimal number in a range, both ends included. No sign, no exponent. */
export const wholeNumber = (min: number, max: number): z.ZodType<number, string> =>
  textSchema((text) => {
    if (!/^[0-9]+$/.test(text)) return new Refusal('not a whole number')
    const value = Number(text)
    return value < min || value > max ? new Refusal(`not in ${min}..${max}`) : value
  })

/** A power of two in a range, both ends included. */
export const powerOfTwo = (min: number, max: number): z.ZodType<number, string> =>
  textSchema((text) => {
    const number = wholeNumber(min, max).safeParse(text)
    if (!number.success) return new Refusal(number.error.issues[0]?.message ?? 'not a whole number')
    return (number.data & (number.data - 1)) === 0 ? number.data : new Refusal('not a power of two')
  })

/** One of a few words. */
export const oneOf = <const T extends string>(words: readonly T[]): z.ZodType<T, string> =>
  textSchema((text) => words.find((word) => word === text) ?? new Refusal(`not one of ${words.join(', ')}`))

/** A boolean as an environment variable may spell it. */
export const yesOrNo: z.ZodType<boolean, string> = textSchema((text) => {
  if (['1', 'true', 'yes', 'on'].includes(text.toLowerCase())) return true
  if (['0', 'false', 'no', 'off'].includes(text.toLowerCase())) return false
  return new Refusal('not true or false')
})

/** IFNAMSIZ of linux/if.h (16) without the NUL. */
const INTERFACE_NAME_MAX_BYTES = 15

/** What is no name of an interface: folders, and those of net.ipv4.conf that stand for all interfaces. */
const RESERVED_INTERFACE_NAMES: readonly string[] = ['.', '..', 'all', 'default']

/** A name that the kernel accepts for a network interface (dev_valid_name() in net/core/dev.c), without `%`. */
export const interfaceName: z.ZodType<string, string> = textSchema((text) => {
  if (text === '') return new Refusal('empty')
  if (Buffer.byteLength(text) > INTERFACE_NAME_MAX_BYTES)
    return new Refusal(`longer than ${INTERFACE_NAME_MAX_BYTES} bytes`)
  if (RESERVED_INTERFACE_NAMES.includes(text)) return new Refusal('a reserved name')
  if (/[/:%\s\0]/.test(text)) return new Refusal('contains a slash, colon, percent sign or space')
  return text
})

/** VDUSE allows 255 bytes; the name is also part of paths in /dev/vduse and sysfs and of the admin socket's. */
const DEVICE_NAME_MAX = 64

/** A name for the device. `control` is reserved: /dev/vduse/control. */
export const deviceName: z.ZodType<string, string> = textSchema((text) => {
  if (text.length > DEVICE_NAME_MAX) return new Refusal(`longer than ${DEVICE_NAME_MAX} characters`)
  if (!/^[A-Za-z0-9_][A-Za-z0-9._+@-]*$/.test(text)) return new Refusal('not letters, digits and . _ + @ -')
  return text === 'control' ? new Refusal('reserved for /dev/vduse/control') : text
})

/** A network namespace: a name below /run/netns as ip-netns(8) keeps them, or an absolute path. */
export const networkNamespace: z.ZodType<string, string> = textSchema((text) => {
  if (text === '' || text.includes('\0')) return new Refusal('empty')
  if (text.startsWith('/')) return text
  return text.includes('/') || text === '.' || text === '..' ? new Refusal('neither a name nor an absolute path') : text
})

/** A unicast MAC address for a card, in canonical spelling. */
export const macAddress: z.ZodType<string, string> = textSchema((text) => {
  const octets = parseMac(text)
  if (octets === null) return new Refusal('not six octets in hexadecimal')
  const why = refuseMac(octets)
  return why === null ? formatMac(octets) : new Refusal(why)
})

/** A path of a file. */
export const filePath: z.ZodType<string, string> = textSchema((text) => {
  if (text === '' || text.includes('\0')) return new Refusal('empty')
  return text.endsWith('/') ? new Refusal('a folder, not a file') : text
})

/** Permissions of a file, in octal. */
export const fileMode: z.ZodType<number, string> = textSchema((text) =>
  /^0?[0-7]{3}$/.test(text) ? Number.parseInt(text, 8) : new Refusal('not three octal digits'),
)

/** A group of group(5) by name, or by number. */
export const groupName: z.ZodType<string, string> = textSchema((text) => {
  if (text === '') return new Refusal('empty')
  return /[:,\s\0]/.test(text) ? new Refusal('contains a colon, comma or space') : text
})

/** Where the admin API listens. */
export const listenAddress = textSchema((text) => {
  const address = parseListenAddress(text)
  return typeof address === 'string' ? new Refusal(address) : address
})

/** Largest processor number: CONFIG_NR_CPUS is at most 8192. */
const CPU_MAX = 8191

/** Processor numbers, in the order given: `2,4-6` is 2, 4, 5, 6. */
export const cpuList: z.ZodType<readonly number[], string> = textSchema((text) => {
  const cpus: number[] = []
  for (const item of text.split(',')) {
    const range = /^([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(item)
    if (range === null) return new Refusal(`${item === '' ? 'an empty item' : item} is not a number or a range`)
    const first = Number(range[1])
    const last = Number(range[2] ?? range[1])
    if (last < first) return new Refusal(`${item} runs backwards`)
    if (last > CPU_MAX) return new Refusal(`${last} is more than ${CPU_MAX}`)
    for (let cpu = first; cpu <= last; cpu++) cpus.push(cpu)
  }
  return cpus
})
