import { PROT_READ, PROT_WRITE } from '../../abi/linux.ts'
import { VDUSE_ACCESS_RO, VDUSE_ACCESS_WO } from '../../abi/vduse.ts'
import { SysError } from '../../base/errors.ts'
import type { Access, Region, RegionSource } from '../../memory/region.ts'
import { OwnedMapping } from '../../sys/mapping.ts'
import { isKernelArea, refuseMemoryFile } from '../../sys/memory-file.ts'
import { native } from '../../sys/native.ts'
import type { VduseDevice } from './device-fd.ts'

/**
 * The driver's memory by the kernel's IOTLB, mapped at first use. VDUSE_IOTLB_GET_FD returns a descriptor of the bounce
 * pages, of a coherent area (the rings), or, under vhost-vdpa, of a part of the VM's memory.
 */
export const iotlbSource = (device: VduseDevice): RegionSource => ({
  resolve(address: number): Region | undefined {
    const entry = device.iotlbEntry(address, address)
    if (entry === null) return undefined
    const ofKernel = isKernelArea(entry.fd)
    try {
      const lengthBytes = entry.last - entry.start + 1
      // Under vhost-vdpa it is whatever file backs the VM's memory.
      if (!ofKernel && refuseMemoryFile(entry.fd, entry.offset, lengthBytes) !== null) return undefined
      if (!Number.isSafeInteger(entry.start + lengthBytes) || !Number.isSafeInteger(entry.offset)) return undefined
      const prot =
        ((entry.perm & VDUSE_ACCESS_RO) !== 0 ? PROT_READ : 0) | ((entry.perm & VDUSE_ACCESS_WO) !== 0 ? PROT_WRITE : 0)
      const mapping = new OwnedMapping(entry.fd, lengthBytes, entry.offset, prot)
      return { start: entry.start, lengthBytes, access: entry.perm as Access, mapping, mappingOffset: 0 }
    } catch (error) {
      // The host is out of memory or mappings: the address cannot be translated, and the queue is quarantined.
      if (error instanceof SysError) return undefined
      throw error
    } finally {
      // The kernel opens it without O_CLOEXEC; the mapping does not need it.
      if (ofKernel) native.vn_close(entry.fd)
      else native.vn_close_peer(entry.fd)
    }
  },
})
