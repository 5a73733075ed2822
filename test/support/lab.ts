import { resolve } from 'node:path'
import { bootLab, KERNEL_NAMES, type KernelName, type Lab, type LabOptions } from '../../scripts/lab/lab.ts'

export type { Lab, LabProcess, ShellResult } from '../../scripts/lab/lab.ts'

const isKernelName = (name: string): name is KernelName => (KERNEL_NAMES as string[]).includes(name)

/** The kernel that this run of the tests is about: VDUSE_NET_TEST_KERNEL, or 6.12. */
export const testKernel = (): KernelName => {
  const name = process.env.VDUSE_NET_TEST_KERNEL || '6.12'
  if (!isKernelName(name)) throw new Error(`VDUSE_NET_TEST_KERNEL=${name}: is none of ${KERNEL_NAMES.join(', ')}`)
  return name
}

/** The compiled program as the build leaves it. */
export const EXECUTABLE = resolve(import.meta.dir, '../../dist/vduse-net')

/** Boots the kernel under test with the compiled program on its PATH. */
export const bootWithProgram = (options: Partial<LabOptions> = {}): Promise<Lab> =>
  bootLab({ kernel: testKernel(), ...options, files: { '/usr/bin/vduse-net': EXECUTABLE, ...options.files } })

/** Ends a guest, and fails if its kernel has complained about anything since it started. */
export const stopHealthy = async (lab: Lab): Promise<void> => {
  const problems = lab.kernelProblems()
  await lab.stop()
  if (problems.length > 0) {
    throw new Error(`kernel ${lab.kernelRelease} complained (${lab.logFile}):\n${problems.join('\n')}`)
  }
}
