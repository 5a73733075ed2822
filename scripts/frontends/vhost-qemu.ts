import { bootLab, type KernelName, type Lab, type LabOptions } from '../lab/lab.ts'

/** A network card of a QEMU guest. */
export type QemuCard =
  | {
      /** The socket of a vhost-user device, which must be listening, or of which QEMU is the server. */
      socket: string
      server?: boolean
      /** Milliseconds between attempts to connect again once the device has gone. */
      reconnectMs?: number
    }
  | {
      /** A TAP that QEMU makes and serves itself: what vhost-user devices are compared with. */
      tap: string
    }

/** One network card of a guest. */
export interface QemuCardOptions {
  card: QemuCard
  /** Tells it from other cards of the same guest; `net` unless told. */
  id?: string
  queuePairs?: number
  packed?: boolean
  mac?: string
  /** Further properties of virtio-net-pci, such as `mq=on`. */
  deviceProperties?: readonly string[]
}

/** What to boot. */
export interface VhostQemuOptions extends QemuCardOptions, Partial<Omit<LabOptions, 'kernel' | 'netns' | 'qemuArgs'>> {
  netns: string
  kernel?: KernelName
  qemuArgs?: readonly string[]
}

/** The options of QEMU for what is behind a card: the netdev called `id`. */
export const cardBackend = (card: QemuCard, queuePairs = 1, id = 'net'): string[] => {
  const queues = queuePairs > 1 ? `,queues=${queuePairs}` : ''
  if ('tap' in card) return ['-netdev', `tap,id=${id},ifname=${card.tap},script=no,downscript=no,vhost=off${queues}`]
  const server = card.server === true ? ',server=on,wait=on' : ''
  const reconnect = card.reconnectMs === undefined ? '' : `,reconnect-ms=${card.reconnectMs}`
  return [
    ...['-chardev', `socket,id=${id}-socket,path=${card.socket}${server}${reconnect}`],
    ...['-netdev', `vhost-user,id=${id},chardev=${id}-socket${queues}`],
  ]
}

/** The options of QEMU for a card and what is behind it. */
export const cardArgs = (options: QemuCardOptions): string[] => {
  const { card, id = 'net', queuePairs = 1, packed, mac, deviceProperties } = options
  const device = [
    `virtio-net-pci,netdev=${id}`,
    // A vector for each ring, one for the control queue, one for configuration changes.
    ...(queuePairs > 1 ? ['mq=on', `vectors=${2 * queuePairs + 2}`] : []),
    ...(packed === true ? ['packed=on'] : []),
    `mac=${mac ?? '02:76:6e:00:00:01'}`,
    ...(deviceProperties ?? []),
  ]
  return [...cardBackend(card, queuePairs, id), '-device', device.join(',')]
}

/**
 * Boots a Debian kernel in QEMU with one network card, which is eth0 of the guest and not up. The guest's memory is
 * shared, as vhost-user needs it.
 */
export const startVhostQemu = (options: VhostQemuOptions): Promise<Lab> => {
  const { netns, kernel = '6.12', qemuArgs, ...rest } = options
  return bootLab({
    loadModules: ['virtio_net'],
    memoryMb: 1024,
    ...rest,
    netns,
    kernel,
    qemuArgs: [...cardArgs(options), ...(qemuArgs ?? [])],
  })
}
