import { isAbstract } from '../sys/unix-socket.ts'

/** The properties of a card that QEMU's command line states. */
export type QemuCard = {
  /** Path of the socket, or `@NAME` of an abstract socket. */
  readonly path: string
  /** True if QEMU listens and the card connects. */
  readonly isServer: boolean
  readonly mac: string
  /** Bytes. */
  readonly mtu: number
  readonly pairs: number
  /** Entries of a ring at most. */
  readonly queueSize: number
}

/** QEMU's limits and default of rx_queue_size and tx_queue_size: hw/net/virtio-net.c. */
const RING_MIN = 256
const RING_MAX = 1024

/** Doubles commas: QEMU reads `,,` in a value as one comma. */
const escaped = (value: string): string => value.replaceAll(',', ',,')

/** Quotes a word for a shell if needed. */
const word = (text: string): string => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`)

/**
 * A command line of QEMU (7.0 or newer) with the card. The guest's memory is a shared memfd, so that the card can map
 * it; size and disks are the user's to change. Null if QEMU cannot have rings as small as the card's.
 */
export const qemuCommand = ({ path, isServer, mac, mtu, pairs, queueSize }: QemuCard): string | null => {
  if (queueSize < RING_MIN) return null
  const ring = Math.min(queueSize, RING_MAX)
  const chardev = [
    'socket',
    'id=vn',
    ...(isAbstract(path) ? [`path=${escaped(path.slice(1))}`, 'abstract=on'] : [`path=${escaped(path)}`]),
    ...(isServer ? ['server=on', 'wait=off'] : ['reconnect=1']),
  ]
  const netdev = ['vhost-user', 'id=net0', 'chardev=vn', ...(pairs > 1 ? [`queues=${pairs}`] : [])]
  const device = [
    ...['virtio-net-pci', 'netdev=net0', `mac=${mac}`],
    // One vector for each queue, one for the control queue, one for the configuration.
    ...(pairs > 1 ? ['mq=on', `vectors=${2 * pairs + 2}`] : []),
    ...(ring > RING_MIN ? [`rx_queue_size=${ring}`, `tx_queue_size=${ring}`] : []),
    ...(mtu === 1500 ? [] : [`host_mtu=${mtu}`]),
  ]
  return [
    ...['qemu-system-x86_64', '-accel', 'kvm', '-accel', 'tcg', '-m', '1G'],
    ...['-object', 'memory-backend-memfd,id=mem,size=1G,share=on', '-machine', 'q35,memory-backend=mem'],
    ...['-chardev', chardev.join(','), '-netdev', netdev.join(','), '-device', device.join(',')],
  ]
    .map(word)
    .join(' ')
}
