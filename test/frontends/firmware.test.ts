import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { copyFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { offeredFeatures } from '../../scripts/frontends/device.ts'
import { Firmware, fetchFirmware, startBootServer } from '../../scripts/frontends/firmware.ts'
import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import { baseImage } from '../../scripts/lab/initramfs.ts'
import { fetchKernel } from '../../scripts/lab/kernel.ts'
import { type Accel, labAccel } from '../../scripts/lab/lab.ts'
import { type TemporaryFolder, temporaryFolder } from '../../scripts/lab/temporary.ts'
import { fetchUserland } from '../../scripts/lab/userland.ts'
import { withNetns } from '../../src/sys/netns.ts'
import { concat } from '../support/frames.ts'
import { drops, negotiated } from '../support/frontend-admin.ts'
import { FrontendRig, noFrontends } from '../support/frontend-rig.ts'
import { testKernel } from '../support/lab.ts'
import { PacketSocket, testFrame } from '../support/packet-socket.ts'

/** A bound for hangs: emulated firmware takes ten seconds, on a busy machine a multiple of that. */
const TEST_MS = 600_000

const NETWORK = '10.80.0'
const HOST = `${NETWORK}.1`

/** The first file to boot: iPXE over the firmware's own driver, or a script for an iPXE that has a driver. */
const BOOT_FILE = 'boot.efi'
const SCRIPT = 'script.ipxe'

/** For an iPXE that is to boot Linux. */
const LINUX_SCRIPT = 'linux.ipxe'

/** Fetched by TFTP and HTTP. */
const LARGE = 'large.bin'
const LARGE_BYTES = 1 << 20

/** To the card that {@link Firmware} has. */
const CARD_MAC = [0x02, 0x76, 0x6e, 0, 0, 1]

let rig: FrontendRig
let root: string
let files: TemporaryFolder
let accel: Accel
let web: { port: number; served: string[]; stop: () => void }

/** An HTTP server of the files, in the namespace. */
const serve = (): typeof web => {
  const served: string[] = []
  const server = withNetns(rig.netns, () =>
    Bun.serve({
      hostname: '0.0.0.0',
      port: 0,
      fetch: (request) => {
        const { pathname } = new URL(request.url)
        served.push(pathname)
        return new Response(Bun.file(join(files.path, pathname)))
      },
    }),
  )
  return { port: server.port!, served, stop: () => void server.stop(true) }
}

beforeAll(async () => {
  if (noFrontends !== null) return
  rig = await FrontendRig.open()
  root = await fetchFirmware()
  accel = await labAccel(testKernel())
  files = temporaryFolder(tmpdir(), 'vduse-net-boot-')
  copyFileSync(join(root, 'usr/lib/ipxe/snponly.efi'), join(files.path, BOOT_FILE))
  writeFileSync(join(files.path, LARGE), Buffer.alloc(LARGE_BYTES, 'virtio'))
  web = serve()
  const script = [
    ...['#!ipxe', 'echo SCRIPT runs'],
    ...[`imgfetch tftp://${HOST}/${LARGE} && imgstat && imgfree`],
    ...[`imgfetch http://${HOST}:${web.port}/${LARGE} && imgstat && echo FETCHED`, 'sleep 3600'],
  ]
  writeFileSync(join(files.path, SCRIPT), `${script.join('\n')}\n`)
  const kernel = await fetchKernel(testKernel())
  symlinkSync(kernel.bzImage, join(files.path, 'vmlinuz'))
  symlinkSync(await baseImage(kernel, await fetchUserland()), join(files.path, 'initrd'))
  const linux = [
    '#!ipxe',
    `kernel http://${HOST}:${web.port}/vmlinuz initrd=initrd console=ttyS0 loglevel=4 rdinit=/bin/sh`,
    `initrd http://${HOST}:${web.port}/initrd`,
    'boot',
  ]
  writeFileSync(join(files.path, LINUX_SCRIPT), `${linux.join('\n')}\n`)
}, TEST_MS)
afterAll(() => {
  web?.stop()
  files?.[Symbol.dispose]()
  rig?.[Symbol.dispose]()
})

type Card = { process: NativeProcess; ifname: string; socket: string; admin: string }

/** A card on a TAP with a boot server. All ends with `stack`. */
const bootCard = async (stack: AsyncDisposableStack, script = SCRIPT): Promise<Card & { server: NativeProcess }> => {
  const admin = rig.socket()
  const card = await rig.device({ admin: `unix:${admin}` })
  stack.use(card.process)
  rig.ip(`addr add ${HOST}/24 dev ${card.ifname}`)
  const server = await startBootServer({
    netns: rig.netns,
    ifname: card.ifname,
    network: NETWORK,
    folder: files.path,
    bootFile: BOOT_FILE,
    // An iPXE says so by an option of its own: it is to go on with the script.
    options: ['--dhcp-match=set:ipxe,175', `--dhcp-boot=tag:ipxe,${script}`],
  })
  stack.use(server)
  return { ...card, admin, server }
}

/** Frames that were longer than the card, or a buffer of its driver, takes. */
const droppedForLength = async (admin: string): Promise<number> => {
  const { frame_too_long = 0, rx_buffer_too_small = 0 } = await drops(admin)
  return frame_too_long + rx_buffer_too_small
}

/** The server has given a file away to its last block. */
const sent = (server: NativeProcess, file: string): Promise<unknown> =>
  server.line(new RegExp(`sent ${join(files.path, file)} to ${NETWORK}`), { timeoutMs: TEST_MS })

/**
 * Sends frames to the card, from the beginning of a boot to its end: as long as the MTU allows, longer by a VLAN tag,
 * and much longer. No firmware has a buffer for the last.
 */
const disturb = (ifname: string): Disposable => {
  rig.ip(`link set ${ifname} mtu 9000`)
  const wire = new PacketSocket(rig.netns, ifname)
  const tagged = testFrame(2, 1518)
  tagged.set([0x81, 0x00, 0x00, 0x05], 12)
  const frames = [testFrame(1, 1514), tagged, testFrame(3, 2000), testFrame(4, 8000)]
  const toCard = frames.map((frame) => concat(Uint8Array.from(CARD_MAC), frame.subarray(6)))
  const timer = setInterval(() => {
    for (const frame of toCard) wire.send(frame)
  }, 5)
  return {
    [Symbol.dispose]: () => {
      clearInterval(timer)
      wire[Symbol.dispose]()
    },
  }
}

/** Starts OVMF, which boots by the card with its own driver. */
const startOvmf = ({ socket }: Card, machine: string, device: string): Promise<Firmware> =>
  Firmware.start({
    netns: rig.netns,
    machine: `${machine},memory-backend=ram`,
    accel,
    card: { socket },
    device: `${device},romfile=,bootindex=1`,
    args: ['-bios', join(root, 'usr/share/ovmf/OVMF.fd')],
  })

/** Starts iPXE, which has a driver for the card. */
const startIpxe = ({ socket }: Card, device: string): Promise<Firmware> =>
  Firmware.start({
    netns: rig.netns,
    machine: 'pc,graphics=off,memory-backend=ram',
    accel,
    card: { socket },
    device: `${device},romfile=`,
    args: ['-kernel', join(root, 'usr/lib/ipxe/ipxe.lkrn')],
  })

describe.skipIf(noFrontends !== null)('firmware', () => {
  /** Waits until the script has run. Meanwhile frames were dropped for their length. */
  const runsScript = async (
    firmware: Firmware,
    { server, admin, process: device }: Awaited<ReturnType<typeof bootCard>>,
  ) => {
    await firmware.says(/SCRIPT runs/)
    await sent(server, SCRIPT)
    await firmware.says(/FETCHED/)
    await sent(server, LARGE)
    expect(firmware.text().match(new RegExp(`${LARGE} : ${LARGE_BYTES} bytes`, 'g'))).toHaveLength(2)
    expect(web.served.at(-1)).toBe(`/${LARGE}`)
    expect(firmware.text()).not.toMatch(/ASSERT/)
    expect(device.tail()).not.toMatch(/disconnected by us|quarantine/)
    expect(await droppedForLength(admin)).toBeGreaterThan(0)
  }

  test.each([
    ['pc', 'virtio-net-pci', false],
    ['q35', 'virtio-net-pci', false],
    ['q35', 'virtio-net-pci,disable-legacy=on', true],
  ] as const)(
    'OVMF on %s boots by PXE with its own driver: %s',
    async (machine, device, modern) => {
      await using stack = new AsyncDisposableStack()
      const card = await bootCard(stack)
      await using firmware = await startOvmf(card, machine, device)
      using _ = disturb(card.ifname)
      await sent(card.server, BOOT_FILE)
      expect((await negotiated(card.admin)).includes('version_1')).toBe(modern)
      await runsScript(firmware, card)
      // Its buffers have no room for a VLAN tag.
      expect((await drops(card.admin)).rx_buffer_too_small).toBeGreaterThan(0)
    },
    TEST_MS,
  )

  test.each([
    ['virtio-net-pci', false],
    ['virtio-net-pci,disable-modern=on', false],
    ['virtio-net-pci,disable-legacy=on', true],
  ] as const)(
    'iPXE fetches by TFTP and HTTP: %s',
    async (device) => {
      await using stack = new AsyncDisposableStack()
      const card = await bootCard(stack)
      await using firmware = await startIpxe(card, device)
      using _ = disturb(card.ifname)
      await runsScript(firmware, card)
    },
    TEST_MS,
  )

  test.each([
    ['OVMF', 'virtio-net-pci', true],
    ['iPXE', 'virtio-net-pci,disable-modern=on', false],
  ] as const)(
    'Linux has its network after %s has loaded it by the same card: %s',
    async (name, device, modern) => {
      await using stack = new AsyncDisposableStack()
      const card = await bootCard(stack, LINUX_SCRIPT)
      await using firmware = await (name === 'OVMF' ? startOvmf(card, 'q35', device) : startIpxe(card, device))
      await firmware.says(/# $/)
      // `done` is not in what is typed, which the console shows as well.
      const own = `${NETWORK}.9/24`
      const setUp = `mount -t proc proc /proc; modprobe virtio_net; ip link set eth0 up; ip addr add ${own} dev eth0`
      firmware.type(
        `${setUp}; until ping -c 1 -W 1 ${HOST} > /tmp/ping; do :; done; ping -c 20 -i 0.02 -W 5 ` +
          `${HOST}; echo do''ne\n`,
      )
      await firmware.says(/done/)
      expect(firmware.text()).toContain('20 packets transmitted, 20 received')
      expect((await negotiated(card.admin)).includes('version_1')).toBe(modern)
    },
    TEST_MS,
  )

  test.each([['virtio-net-pci'], ['virtio-net-pci,disable-modern=on'], ['virtio-net-pci,disable-legacy=on']])(
    'U-Boot boots by DHCP and TFTP, and what it has loaded is intact: %s',
    async (device) => {
      await using stack = new AsyncDisposableStack()
      const card = await bootCard(stack)
      await using firmware = await Firmware.start({
        netns: rig.netns,
        machine: 'pc,memory-backend=ram',
        accel,
        card: { socket: card.socket },
        device: `${device},romfile=`,
        args: ['-bios', join(root, 'usr/lib/u-boot/qemu-x86_64/u-boot.rom')],
      })
      await firmware.says(/Hit any key/)
      /** Types a command, and waits for the next prompt. */
      const run = async (command: string): Promise<string> => {
        const mark = firmware.mark()
        firmware.type(`${command}\n`)
        await firmware.says(/\n=> $/, { mark })
        return firmware.text(mark)
      }
      using _ = disturb(card.ifname)
      await run('')
      await run('pci enum; virtio scan')
      expect(await run('setenv autoload no; dhcp')).toMatch(/DHCP client bound to address 10\.80\.0/)
      const loaded = await run(`tftpboot 4000000 ${LARGE}`)
      expect(loaded).toContain(`Bytes transferred = ${LARGE_BYTES}`)
      const crc = Bun.hash.crc32(await Bun.file(join(files.path, LARGE)).arrayBuffer())
      expect(await run(`crc32 4000000 ${LARGE_BYTES.toString(16)}`)).toContain(crc.toString(16).padStart(8, '0'))
      await sent(card.server, LARGE)
      expect(card.process.tail()).not.toMatch(/disconnected by us|quarantine/)
      expect(await droppedForLength(card.admin)).toBeGreaterThan(0)
    },
    TEST_MS,
  )

  test(
    'SLOF of a big-endian PowerPC boots by DHCP and TFTP with a modern driver',
    async () => {
      await using stack = new AsyncDisposableStack()
      const card = await bootCard(stack)
      await using _firmware = await Firmware.start({
        netns: rig.netns,
        architecture: 'ppc64',
        machine: 'pseries,memory-backend=ram',
        accel,
        card: { socket: card.socket },
        device: 'virtio-net-pci,romfile=,bootindex=1',
        args: [],
      })
      await sent(card.server, BOOT_FILE)
      expect(await negotiated(card.admin)).toContain('version_1')
      expect(card.process.tail()).not.toMatch(/disconnected by us|quarantine/)
    },
    TEST_MS,
  )

  test(
    'QEMU itself refuses vhost-user to the big-endian legacy driver of s390x, and the card waits for the next',
    async () => {
      await using stack = new AsyncDisposableStack()
      const card = await bootCard(stack)
      await using firmware = await Firmware.start({
        netns: rig.netns,
        architecture: 's390x',
        machine: 's390-ccw-virtio,memory-backend=ram',
        accel,
        card: { socket: card.socket },
        device: 'virtio-net-ccw,bootindex=1',
        args: [],
      })
      await firmware.says(/vhost_set_vring_endian failed: Operation not supported/)
      await firmware[Symbol.asyncDispose]()
      await offeredFeatures(card.socket)
      expect(card.process.tail()).not.toMatch(/disconnected by us|quarantine/)
    },
    TEST_MS,
  )
})
