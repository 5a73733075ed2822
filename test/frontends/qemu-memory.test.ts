import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { offeredFeatures } from '../../scripts/frontends/device.ts'
import { until } from '../../scripts/frontends/native-process.ts'
import { Qmp } from '../../scripts/frontends/qmp.ts'
import { startVhostQemu } from '../../scripts/frontends/vhost-qemu.ts'
import { onDeath } from '../../scripts/lab/cleanup.ts'
import type { Lab } from '../../scripts/lab/lab.ts'
import { drops } from '../support/frontend-admin.ts'
import { deviceHoldings } from '../support/frontend-holdings.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { expectIntact, ping } from '../support/frontend-traffic.ts'
import { testKernel } from '../support/lab.ts'

/** A bound for hangs. */
const TEST_MS = 300_000

const HOST = '10.91.0.1'
const GUEST = '10.91.0.2'
const TRANSFER_BYTES = 4 << 20

const HUGE_MB = 2
const HUGE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB'
const pages = (name: string): number => Number(readFileSync(`${HUGE_PAGES}/${name}`, 'utf8'))

/** Has the kernel keep this much memory in huge pages besides, until it is disposed of. Or why it does not. */
const reserveHugePages = (megabytes: number): Disposable | string => {
  try {
    const before = pages('nr_hugepages')
    const restore = (): void => writeFileSync(`${HUGE_PAGES}/nr_hugepages`, String(before))
    writeFileSync(`${HUGE_PAGES}/nr_hugepages`, String(before + megabytes / HUGE_MB))
    const free = (pages('free_hugepages') - pages('resv_hugepages')) * HUGE_MB
    if (free >= megabytes) {
      const forget = onDeath(restore)
      return {
        [Symbol.dispose]: () => {
          forget()
          restore()
        },
      }
    }
    restore()
    return `only ${free} of ${megabytes} MB are to be had in huge pages of 2 MB`
  } catch (error) {
    return `huge pages of 2 MB cannot be reserved: ${String(error)}`
  }
}

const GUEST_MB = 512
const hugePages = noFrontends === null ? reserveHugePages(GUEST_MB) : noFrontends
if (typeof hugePages === 'string') console.warn(`skipped, guests with huge pages: ${hugePages}`)

let rig: FrontendRig

beforeAll(async () => {
  if (noFrontends === null) rig = await FrontendRig.open()
}, TEST_MS)
afterAll(() => {
  if (typeof hugePages !== 'string') hugePages[Symbol.dispose]()
  rig?.[Symbol.dispose]()
})
afterEach(() => rig?.ip(`addr flush to ${HOST}`))

const startCard = async () => {
  const admin = rig.socket()
  const card = await rig.device({ admin: `unix:${admin}` })
  rig.ip(`addr add ${HOST}/24 dev ${card.ifname}`)
  return { ...card, admin }
}

const configure = async (guest: Lab): Promise<void> => {
  await guest.ok(`ip addr replace ${GUEST}/24 dev eth0 && ip link set eth0 up`)
  await guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
  await ping(guest, HOST, { count: 10 })
}

describe.skipIf(typeof hugePages === 'string')('a guest whose memory is in huge pages of 2 MB', () => {
  test.each([
    ['split', {}],
    ['packed', { packed: true }],
  ] as const)(
    'has its traffic, and the card holds nothing of it when it is killed: %s',
    async (_, ring) => {
      const card = await startCard()
      await using _device = card.process
      await using guest = await startVhostQemu({
        netns: rig.netns,
        kernel: testKernel(),
        card,
        ...ring,
        memoryMb: GUEST_MB,
        memoryBackend: ['hugetlb=on', 'hugetlbsize=2M'],
      })
      expect(pages('free_hugepages')).toBeLessThan(pages('nr_hugepages'))
      await configure(guest)
      await expectIntact(rig, guest, { host: HOST, bytes: TRANSFER_BYTES })
      const sent = rig.counters(card.ifname).rxPackets
      guest.spawn(`ping -f ${HOST}`)
      await until('packets flow', () => rig.counters(card.ifname).rxPackets > sent + 200, 60_000)
      await guest.stop()
      const mapped = () => deviceHoldings(card.process.pid).sharedMaps
      await until('the card has unmapped all', () => Bun.deepEquals(mapped(), {}), 60_000).catch(() => {})
      expect(mapped()).toEqual({})
      await offeredFeatures(card.socket)
    },
    TEST_MS,
  )
})

describe.skipIf(noFrontends !== null)('a guest whose memory grows and shrinks', () => {
  const DIMM_MB = 256

  /** Memory of the guest, in MB. */
  const memory = async (guest: Lab): Promise<number> =>
    Number((await guest.ok("awk '/MemTotal/ {print $2}' /proc/meminfo")).trim()) / 1024

  test.each([
    ['shared memory of 4 KB pages', {}],
    ...(typeof hugePages === 'string'
      ? []
      : [['huge pages', { hugetlb: true, hugetlbsize: HUGE_MB << 20 }] as [string, Record<string, unknown>]]),
  ] as [string, Record<string, unknown>][])(
    'uses what is plugged in for its packets, and lets it go, while packets flow: %s',
    async (_, backend) => {
      const card = await startCard()
      await using _device = card.process
      const monitor = rig.socket()
      await using guest = await startVhostQemu({
        netns: rig.netns,
        kernel: testKernel(),
        card,
        memoryMb: 512,
        maxMemoryMb: 2048,
        qemuArgs: ['-qmp', `unix:${monitor},server=on,wait=off`],
      })
      using qmp = await Qmp.connect(monitor)
      await configure(guest)
      const flood = guest.spawn(`ping -q -i 0.002 ${HOST}`)
      const plugIn = async (number: number, online: string): Promise<void> => {
        const before = await memory(guest)
        await guest.ok(`echo ${online} > /sys/devices/system/memory/auto_online_blocks`)
        const shared = { 'qom-type': 'memory-backend-memfd', id: `memory${number}`, size: DIMM_MB << 20, share: true }
        await qmp.run('object-add', { ...shared, ...backend })
        await qmp.run('device_add', { driver: 'pc-dimm', id: `dimm${number}`, memdev: `memory${number}` })
        await until('the guest has more memory', async () => (await memory(guest)) > before + DIMM_MB / 2, 60_000)
      }
      // The kernel's own memory, and so its packets, now come from above 4 GB: there is the new one alone.
      await plugIn(0, 'online')
      const used = "awk '/^Node.*Normal/ {zone=1} zone && /nr_free_pages/ {print $2; exit}' /proc/zoneinfo"
      const freeBefore = Number(await guest.ok(used))
      expect(freeBefore).toBeGreaterThan(0)
      await guest.ok('ip link set eth0 down && ip link set eth0 up')
      await guest.waitFor('ip link show eth0 | grep -q LOWER_UP')
      await expectIntact(rig, guest, { host: HOST, bytes: TRANSFER_BYTES })
      expect(Number(await guest.ok(used))).toBeLessThan(freeBefore)

      await plugIn(1, 'online_movable')
      await expectIntact(rig, guest, { host: HOST, bytes: TRANSFER_BYTES })
      const whole = await memory(guest)
      await qmp.run('device_del', { id: 'dimm1' })
      await until('the guest has less memory', async () => (await memory(guest)) < whole - DIMM_MB / 2, 60_000)
      await until('the memory is gone', async () => {
        return ((await qmp.run('query-memory-devices')) as unknown[]).length === 1
      })
      await qmp.run('object-del', { id: 'memory1' })
      await expectIntact(rig, guest, { host: HOST, bytes: TRANSFER_BYTES })

      flood.kill('INT')
      await flood.exited
      const [, sent, received] = /(\d+) packets transmitted, (\d+) received/.exec(flood.lines.join('\n')) ?? []
      // Of those that were on their way while the interface was down no answer came.
      expect(Number(received)).toBeGreaterThan(Number(sent) * 0.8)
      const { chain_address_unmapped } = await drops(card.admin)
      expect(chain_address_unmapped).toBe(0)
      expect(card.process.tail()).not.toMatch(/disconnected by us|quarantine/)
      expect(guest.kernelProblems()).toEqual([])
    },
    TEST_MS,
  )
})
