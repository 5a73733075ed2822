import { afterAll, describe, setDefaultTimeout, test } from 'bun:test'
import { realpathSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { bootWithProgram, type Lab, type LabProcess } from './lab.ts'

export type { Lab, LabProcess }

const root = resolve(import.meta.dir, '../..')
/** Where the programs of test/support/guest are in the guest. */
const PROGRAMS = '/usr/lib/e2e.js'

/** The runtime of this process for the guest, and what it is to run there. */
const guestFiles = async () => {
  const built = await Bun.build({ entrypoints: [join(root, 'test/support/guest/main.ts')], target: 'bun' })
  return {
    '/usr/bin/bun': realpathSync(process.execPath),
    [PROGRAMS]: { content: await built.outputs[0]!.text() },
  }
}

const boot = async (): Promise<Lab> => {
  const lab = await bootWithProgram({ files: await guestFiles() })
  // Room for what waits while an emulated processor is busy elsewhere: a socket that overflows is not the card's loss.
  await lab.ok('sysctl -qw net.core.rmem_max=16777216 net.core.rmem_default=4194304')
  return lab
}

let booted: Promise<Lab> | undefined

/** The guest of this process, booted when it is first asked for: all test files share it. It ends with the process. */
export const sharedLab = (): Promise<Lab> => {
  booted ??= boot()
  return booted
}

/** The command line that runs one of the programs of test/support/guest. */
export const guestProgram = (name: string, ...words: (string | number)[]): string =>
  ['bun', PROGRAMS, name, ...words.map((word) => `'${word}'`)].join(' ')

/** The answer of a program of test/support/guest: its last line. */
export const answerOf = <T>(lines: readonly string[] | string): T => {
  const list = typeof lines === 'string' ? lines.trim().split('\n') : lines
  return JSON.parse(list.at(-1) ?? '') as T
}

/**
 * What a card can leave behind: processes, devices of VDUSE and of the vDPA bus, interfaces, sockets and their folder.
 * Two of these are equal if nothing has been left behind, and nothing else has gone, in between.
 */
export const traces = async (lab: Lab): Promise<Record<string, string[]>> => {
  const questions = {
    processes: 'pidof vduse-net',
    vduse: 'ls /dev/vduse',
    vdpa: 'ls /sys/bus/vdpa/devices',
    links: 'ls /sys/class/net',
    files: 'find /run/vduse-net 2>/dev/null; find /tmp ! -type d | grep -v "^/tmp/e2e-"',
  }
  const script = Object.entries(questions)
    .map(([what, command]) => `echo "# ${what}"; { ${command}; } | tr " " "\\n"`)
    .join('\n')
  const found: Record<string, string[]> = {}
  let current: string[] = []
  for (const line of (await lab.ok(`${script}; true`)).split('\n')) {
    if (line.startsWith('# ')) {
      current = []
      found[line.slice(2)] = current
    } else if (line !== '') current.push(line)
  }
  return found
}

/** An emulated guest on a busy machine is slow. What waits has a bound of its own, below this. */
const TEST_TIMEOUT_MS = 600_000

let complaintsSeen = 0

/** Takes away what a test that failed has left, so that the next file does not fail of that too. */
const tidy = async (): Promise<void> => {
  const lab = await sharedLab()
  await lab.sh('killall -q -CONT vduse-net; killall -q vduse-net')
  await lab.waitFor('! pidof vduse-net', { timeoutMs: 30_000 }).catch(() => lab.sh('killall -q -KILL vduse-net'))
  await lab.sh(
    'killall -q iperf3 ping bun tcpdump; for name in $(ip netns list | cut -d " " -f 1); do ip netns del $name; done',
  )
  await lab.sh('rm -rf /run/vduse-net')
}

/**
 * Around the tests of each file: they may take long, and after them the guest's kernel has nothing to complain about.
 */
export const endToEnd = (topic: string, tests: () => void): void => {
  setDefaultTimeout(TEST_TIMEOUT_MS)
  describe(topic, () => {
    afterAll(tidy)
    tests()
  })
  test(`${topic}: the kernel complains about nothing`, async () => {
    const lab = await sharedLab()
    // A command's way there and back brings everything that the console has to say before it.
    await lab.ok('true')
    const complaints = lab.kernelProblems()
    const news = complaints.slice(complaintsSeen)
    complaintsSeen = complaints.length
    if (news.length > 0) throw new Error(`kernel ${lab.kernelRelease} (${lab.logFile}):\n${news.join('\n')}`)
  })
}
