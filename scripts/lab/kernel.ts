import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { zstdDecompressSync } from 'bun'
import { exists } from './cache.ts'
import { LabError } from './command.ts'
import { packageFolder } from './pinned.ts'

/**
 * The kernels of the lab and the Debian suite each comes from. Both suites carry VDUSE; `newest` moves with its suite.
 */
export const KERNEL_SUITES = { '6.12': 'bookworm-backports', newest: 'trixie-backports' } as const

/** A kernel the lab can boot. */
export type KernelName = keyof typeof KERNEL_SUITES

/** All of them. */
export const KERNEL_NAMES = Object.keys(KERNEL_SUITES) as KernelName[]

/** An unpacked kernel in the cache. */
export interface Kernel {
  name: KernelName
  /** As `uname -r` says it. */
  release: string
  /** What QEMU's -kernel takes. */
  image: string
  /** The same as Debian packs it, which firmware can load. */
  bzImage: string
  /** The folder lib/modules/RELEASE. */
  modules: string
}

/** Fetches the kernel unless it is in the cache. */
export const fetchKernel = async (name: KernelName): Promise<Kernel> => {
  const folder = await packageFolder({
    name: `linux-${name}`,
    suite: KERNEL_SUITES[name],
    // The cloud flavour has every module a virtual machine needs at a third of the size. Its files are spread
    // differently over packages from release to release; the meta package knows.
    select: (apt) => apt.dependencies('linux-image-cloud-amd64', /^linux-(image|base|binary|modules)-\d/),
    build: async (apt, files, target) => {
      const unpacked = join(target, 'unpacked')
      await mkdir(unpacked)
      await apt.unpack(files, unpacked)
      await keepKernel(unpacked, target)
      await rm(unpacked, { recursive: true })
    },
  })
  const [release] = await readdir(join(folder, 'modules'))
  if (release === undefined) throw new LabError(`${folder}: holds no modules`, `remove it and try again`)
  return {
    name,
    release,
    image: join(folder, 'vmlinux'),
    bzImage: join(folder, 'vmlinuz'),
    modules: join(folder, 'modules', release),
  }
}

/** Moves the image and the modules of unpacked kernel packages to where `Kernel` wants them. */
const keepKernel = async (unpacked: string, target: string): Promise<void> => {
  const homes = []
  for (const path of ['lib/modules', 'usr/lib/modules']) {
    if (await exists(join(unpacked, path))) homes.push(join(unpacked, path))
  }
  const [home] = homes
  const [release] = home === undefined ? [] : await readdir(home)
  if (home === undefined || release === undefined) throw new LabError('the kernel packages hold no modules')
  for (const image of [join(unpacked, 'boot', `vmlinuz-${release}`), join(home, release, 'vmlinuz')]) {
    if (!(await exists(image))) continue
    await writeFile(join(target, 'vmlinux'), elfOfBzImage(await readFile(image)))
    await rename(image, join(target, 'vmlinuz'))
    await mkdir(join(target, 'modules'))
    await rename(join(home, release), join(target, 'modules', release))
    return
  }
  throw new LabError(`the kernel packages hold no vmlinuz for ${release}`)
}

/**
 * The ELF kernel inside a bzImage, which QEMU enters directly (PVH). Decompressing here and not in the guest saves two
 * of five seconds of an emulated boot. Packed otherwise than with zstd, the bzImage is returned as it is: it boots too.
 * Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
 */
const elfOfBzImage = (bzImage: Buffer): Uint8Array => {
  const start = (bzImage.readUInt8(0x1f1) + 1) * 512 + bzImage.readUInt32LE(0x248)
  // Four bytes with the unpacked size follow the compressed stream.
  const payload = bzImage.subarray(start, start + bzImage.readUInt32LE(0x24c) - 4)
  return payload.readUInt32LE(0) === 0xfd2fb528 ? zstdDecompressSync(payload) : bzImage
}
