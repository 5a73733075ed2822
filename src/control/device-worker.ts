import { VIRTIO_NET_F_RSS } from '../abi/virtio.ts'
import { EXIT, SysError, UserError } from '../base/errors.ts'
import type { CloseTap, DeviceWorkerMessage, OpenTap, ServeDevice } from '../channel/worker-messages.ts'
import { featureBit, mandatoryFeatures } from '../device/features.ts'
import { uselessFeatures } from '../tap/offloads.ts'
import { Tap } from '../tap/tap.ts'
import { VduseDevice } from '../transport/vduse/device-fd.ts'
import { iotlbSource } from '../transport/vduse/iotlb-source.ts'
import { VduseTransport } from '../transport/vduse/transport.ts'
import { MemoryTable, memoryTableSource } from '../transport/vhost-user/memory-table.ts'
import { VhostUserTransport } from '../transport/vhost-user/transport.ts'
import { DeviceService, type TransportParts } from './device-service.ts'

declare const self: Worker

const post = (message: DeviceWorkerMessage): void => self.postMessage(message)

let tap: Tap | null = null

const whatWasCreated = (name: string, persist: boolean): string =>
  persist
    ? `created ${name}: it stays when this process ends (ip link del ${name})`
    : `created ${name}: it vanishes when this process ends, with the addresses given to it (--tap-persist keeps both)`

const open = ({ tap: options }: OpenTap): void => {
  try {
    tap = new Tap(options)
    const { name, index, created, hasVnetHdr, fds } = tap
    const mtu = tap.link()?.mtu ?? options.mtu ?? 1500
    const steeringErrno = fds.length > 1 ? tap.steeringErrno() : 0
    const useless =
      uselessFeatures(tap.supportedOffloads, hasVnetHdr) | (steeringErrno === 0 ? 0n : featureBit(VIRTIO_NET_F_RSS))
    for (const warning of tap.warnings) post({ kind: 'log', level: 'warning', text: warning })
    if (created) post({ kind: 'log', level: 'info', text: whatWasCreated(name, options.persist) })
    post({
      kind: 'opened',
      tap: { name, index, created, hasVnetHdr, mtu, fds, uselessFeatures: useless, steeringErrno },
    })
  } catch (error) {
    if (error instanceof UserError) {
      post({ kind: 'refused', message: error.message, hint: error.hint, exitCode: error.exitCode })
    } else if (error instanceof SysError) {
      post({ kind: 'refused', message: error.message, hint: 'see `vduse-net doctor`', exitCode: EXIT.runtime })
    } else throw error
  }
}

const close = (): void => {
  tap?.[Symbol.dispose]()
  post({ kind: 'stopped' })
}

const transportParts = ({ transport, pairs }: ServeDevice): TransportParts => {
  switch (transport.kind) {
    case 'vduse': {
      const vduse = new VduseDevice(transport.fd)
      return {
        memory: iotlbSource(vduse),
        requiredFeatures: mandatoryFeatures,
        make: (device, queues, log) => {
          for (const [index, fd] of transport.kickFds.entries()) queues.setKick(index, fd)
          return new VduseTransport(vduse, device, transport.kickFds, (what) => log('warning', what))
        },
      }
    }
    case 'vhost-user':
      return {
        memory: memoryTableSource(transport.memory),
        requiredFeatures: 0n,
        make: (device, queues, log) =>
          new VhostUserTransport({
            endpoint: transport.endpoint,
            inBand: transport.inBand,
            memory: new MemoryTable(transport.memory),
            device,
            host: queues,
            pairs: pairs.length,
            sendFrame: (frame) => tap?.send(frame),
            log,
          }),
      }
  }
}

self.onmessage = ({ data }: MessageEvent<OpenTap | CloseTap | ServeDevice>) => {
  if (data.kind === 'open') open(data)
  else if (data.kind === 'close') close()
  else if (tap !== null) new DeviceService(tap, data, transportParts(data), post).run()
}
