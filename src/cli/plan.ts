import { formatListenAddress } from '../base/listen-address.ts'
import type { Config } from './config.ts'

/** The steps of `run` with this configuration, a line each. */
export const planOf = (config: Config): string[] => {
  const { tap, features } = config
  const pairs = `${config.queuePairs} queue pair${config.queuePairs === 1 ? '' : 's'}`
  const steps = config.pidFile === null ? [] : [`write ${config.pidFile}`]
  const where = tap.netns === null ? '' : ` in network namespace ${tap.netns}`
  const stays = tap.persist ? ' and keep it at the end' : ''
  steps.push(
    tap.fd === null
      ? `open TAP ${tap.name}${where}, create it if there is none${stays}`
      : `use TAP ${tap.name}, open as descriptor ${tap.fd}`,
  )
  if (config.mtu !== null) steps.push(`set its MTU to ${config.mtu}`)
  if (tap.bridge !== null) steps.push(`put it into bridge ${tap.bridge}`)
  if (config.transport.kind === 'vhost-user') {
    const { socket } = config.transport
    const place = socket.kind === 'fd' ? `on descriptor ${socket.fd}` : `on ${socket.path}`
    steps.push(`serve a vhost-user front-end ${place}: MAC ${config.mac}, ${pairs}`)
  } else steps.push(`create /dev/vduse/${config.name}: MAC ${config.mac}, rings of up to ${config.queueSize}`)
  if (features.on.length > 0) steps.push(`require ${features.on.join(', ')}`)
  if (features.off.length > 0) steps.push(`not offer ${features.off.join(', ')}`)
  if (config.admin.listen.kind !== 'off')
    steps.push(`serve the admin API on ${formatListenAddress(config.admin.listen)}`)
  if (config.transport.kind === 'vduse' && !config.attach)
    steps.push(`wait for: vdpa dev add name ${config.name} mgmtdev vduse`)
  else if (config.transport.kind === 'vduse')
    steps.push(
      `add ${config.name} to the vDPA bus${config.bind === 'none' ? '' : ` and bind it to ${config.bind}_vdpa`}`,
    )
  return steps
}
