import { constants } from 'node:os'
import { EXIT, UserError } from '../base/errors.ts'
import { NetlinkError, type NetlinkRequester } from '../sys/netlink-socket.ts'
import { getLink, type Link, setLink } from './links.ts'

const { EPERM } = constants.errno

/** The bridge of this name, for the port `portName`. Throws UserError if there is none, or it is not a bridge. */
export const findBridge = (netlink: NetlinkRequester, bridgeName: string, portName: string): Link => {
  const bridge = getLink(netlink, bridgeName)
  if (bridge === null) {
    throw new UserError(
      `bridge ${bridgeName}: no such interface`,
      `ip link add ${bridgeName} type bridge && ip link set ${bridgeName} up`,
      EXIT.deviceMissing,
    )
  }
  if (bridge.kind !== 'bridge') {
    const kind = bridge.kind === '' ? 'a hardware or loopback interface' : `a ${bridge.kind}`
    throw new UserError(
      `bridge ${bridgeName}: is not a bridge (it is ${kind})`,
      bridge.kind === 'openvswitch'
        ? `leave --bridge out and run: ovs-vsctl add-port ${bridgeName} ${portName}`
        : `create one (ip link add br0 type bridge), join ${bridgeName} to it, and pass that one`,
    )
  }
  return bridge
}

/**
 * Makes the interface a port of the bridge. True if it was not a port before, so that the caller must undo it. Throws
 * UserError if the interface belongs to another bridge, or the kernel refuses.
 */
export const joinBridge = (netlink: NetlinkRequester, port: Link, bridge: Link): boolean => {
  const bridgeName = bridge.name
  if (port.master === bridge.index) return false
  if (port.master !== 0) {
    const owner = getLink(netlink, port.master)?.name ?? `interface ${port.master}`
    throw new UserError(
      `${port.name}: already belongs to ${owner}, not to ${bridgeName}`,
      `ip link set ${port.name} nomaster, or leave --bridge out`,
    )
  }
  try {
    setLink(netlink, port.index, { master: bridge.index })
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error
    throw new UserError(
      `${port.name}: cannot join bridge ${bridgeName}: ${error.reason}`,
      error.errno === EPERM ? 'run as root, or grant CAP_NET_ADMIN' : `see: ip -d link show ${bridgeName}`,
      error.errno === EPERM ? EXIT.permission : EXIT.runtime,
    )
  }
  return true
}
