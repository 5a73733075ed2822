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

/** What to boot. */
export interface VhostQemuOptions extends Partial<Omit<LabOptions, 'kernel' | 'netns' | 'qemuArgs'>> {
  netns: string
  kernel?: KernelName
  card: QemuCard
  queuePairs?: number
  packed?: boolean
  mac?: string
  /** Further properties of virtio-net-pci, such as `mq=on`. */
  deviceProperties?: readonly string[]
  qemuArgs?: readonly string[]
}

const backend = (card: QemuCard, queuePairs: number): string[] => {
  const queues = queuePairs > 1 ? `,queues=${queuePairs}` : ''
  if ('tap' in card) return ['-netdev', `tap,id=net,ifname=${card.tap},script=no,downscript=no,vhost=off${queues}`]
  const server = card.server === true ? ',server=on,wait=on' : ''
  const reconnect = card.reconnectMs === undefined ? '' : `,reconnect-ms=${card.reconnectMs}`
  return [
    ...['-chardev', `socket,id=card,path=${card.socket}${server}${reconnect}`],
    ...['-netdev', `vhost-user,id=net,chardev=card${queues}`],
  ]
}

/**
 * Boots a Debian kernel in QEMU with one network card, which is eth0 of the guest and not up. The guest's memory is shared, as
 * vhost-user needs it.
 */
export const startVhostQemu = (options: VhostQemuOptions): Promise<Lab> => {
  const { netns, kernel = '6.12', card, queuePairs = 1, packed, mac, deviceProperties, qemuArgs, ...rest } = options
  const device = [
    'virtio-net-pci,netdev=net',
    // A vector for each ring, one for the control queue, one for configuration changes.
    ...(queuePairs > 1 ? ['mq=on', `vectors=${2 * queuePairs + 2}`] : []),
    ...(packed === true ? ['packed=on'] : []),
    `mac=${mac ?? '02:76:6e:00:00:01'}`,
    ...(deviceProperties ?? []),
  ]
  return bootLab({
    loadModules: ['virtio_net'],
    memoryMb: 1024,
    ...rest,
    netns,
    kernel,
    qemuArgs: [...backend(card, queuePairs), '-device', device.join(','), ...(qemuArgs ?? [])],
  })
}
