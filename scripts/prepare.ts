/**
 * Fetches, compiles and boots once what tests need beside the card, so that no test waits for it: the programs of the
 * lab, front-ends and shells, each kernel with its initramfs, and the answer to whether KVM works. When all is there it
 * takes as long as the boots.
 */
import { buildRxhash, buildTapLoad } from '../test/support/programs.ts'
import { fetchDnsmasq, fetchFirmware } from './frontends/firmware.ts'
import { fetchDpdk, fetchUml } from './frontends/packages.ts'
import { fetchSelftests } from './frontends/selftests.ts'
import { progress } from './lab/command.ts'
import { asLabError } from './lab/disk-error.ts'
import { bootLab, KERNEL_NAMES } from './lab/lab.ts'
import { fetchQemu, QEMU_ARCHITECTURES } from './lab/qemu.ts'
import { fetchShells } from './lab/shells.ts'

const frontends = async (): Promise<void> => {
  for (const build of [buildTapLoad, buildRxhash]) await build()
  for (const fetch of [fetchUml, fetchDpdk, fetchFirmware, fetchDnsmasq, fetchSelftests, fetchShells]) await fetch()
  for (const architecture of QEMU_ARCHITECTURES) await fetchQemu(architecture)
}

try {
  if (process.arch === 'x64') await frontends()
  for (const kernel of KERNEL_NAMES) {
    await using lab = await bootLab({ kernel })
    progress(`Linux ${lab.kernelRelease} boots, ${lab.accel === 'kvm' ? 'under KVM' : 'emulated'}`)
  }
} catch (error) {
  const known = asLabError(error)
  if (known === null) throw error
  process.stderr.write(`prepare: ${known.message}\n`)
  process.exitCode = 1
}
