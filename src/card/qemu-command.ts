import { isAbstract } from '../sys/unix-socket.ts'

/** What a QEMU needs to know of a card. */
export type QemuCard = {
  /** Of the socket, or the name of an abstract one. */
  readonly path: string
  /** QEMU is to listen on it. */
  readonly isServer: boolean
  readonly mac: string
  /** Bytes. */
  readonly mtu: number
  readonly pairs: number
  /** Entries of a ring at most. */
  readonly queueSize: number
}

/** QEMU's own limits for rx_queue_size and tx_queue_size, and what it does without being told. hw/net/virtio-net.c. */
const RING_MIN = 256
const RING_MAX = 1024

/** QEMU takes a comma in a value as two. */
const escaped = (value: string): string => value.replaceAll(',', ',,')

/** A word as a shell takes it. */
const word = (text: string): string => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`)

/**
 * A command line of QEMU (7.0 or newer) with the card in it. Its memory is a memfd, which is how we get at it; size and
 * disks are the user's to change. Null for a card whose rings are smaller than any of QEMU's.
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
    // A vector for each queue, for the control queue and for the configuration.
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
