import { IFNAMSIZ } from '../abi/tun.ts'

/** Folders, and those of net.ipv4.conf that stand for all interfaces (net/ipv4/devinet.c). */
const RESERVED: readonly string[] = ['.', '..', 'all', 'default']

/**
 * Why this cannot be the name of a new interface, or null if it can: the rules of dev_valid_name (net/core/dev.c). `%`
 * is refused as well, because the kernel takes a name with it for a pattern and chooses the name itself.
 */
export const refuseInterfaceName = (name: string): string | null => {
  const lengthBytes = new TextEncoder().encode(name).length
  if (lengthBytes === 0) return 'an interface name cannot be empty'
  if (lengthBytes >= IFNAMSIZ) return `an interface name has at most ${IFNAMSIZ - 1} bytes, this one has ${lengthBytes}`
  if (RESERVED.includes(name)) return 'no interface can have this name'
  const bad = /[/:%\s\0]/u.exec(name)
  return bad === null ? null : `an interface name cannot contain ${JSON.stringify(bad[0])}`
}
