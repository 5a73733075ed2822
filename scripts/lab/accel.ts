import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { cacheRoot, readJson, writeWhole } from './cache.ts'
import { LabError, progress } from './command.ts'
import { kvmObstacle } from './kvm.ts'
import { type Accel, type MachineSpec, startMachine } from './machine.ts'

/** A guest under KVM is up in two seconds where KVM works. */
const PROBE_TIMEOUT_MS = 12_000

interface Verdict {
  bootId: string
  accel: Accel
}

/**
 * KVM where it really boots this kernel, else emulation. A /dev/kvm proves little: inside some virtual machines it
 * opens and then fails or hangs, so a boot decides, once per kernel and boot of this machine.
 * VDUSE_NET_LAB_ACCEL=kvm|tcg overrides it.
 */
export const chooseAccel = async (spec: Omit<MachineSpec, 'accel'>): Promise<Accel> => {
  const wish = process.env.VDUSE_NET_LAB_ACCEL
  if (wish === 'kvm' || wish === 'tcg') return wish
  if (wish) throw new LabError(`VDUSE_NET_LAB_ACCEL=${wish}: unknown`, 'use kvm or tcg')
  if (kvmObstacle() !== null) return 'tcg'
  const bootId = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  const path = join(cacheRoot(), 'accel', `${spec.kernel.release}.json`)
  const known = await readJson<Verdict>(path)
  if (known?.bootId === bootId) return known.accel
  progress('trying whether KVM boots here')
  const accel = await startMachine({ ...spec, accel: 'kvm', timeoutMs: PROBE_TIMEOUT_MS }).then(
    async (machine): Promise<Accel> => {
      await machine.stop(false)
      return 'kvm'
    },
    (): Accel => 'tcg',
  )
  progress(accel === 'kvm' ? 'it does' : 'it does not: guests are emulated')
  await writeWhole(path, JSON.stringify({ bootId, accel } satisfies Verdict))
  return accel
}
