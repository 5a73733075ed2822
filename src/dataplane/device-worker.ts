import { EXIT, SysError, UserError } from '../base/errors.ts'
import { uselessFeatures } from '../tap/offloads.ts'
import { Tap } from '../tap/tap.ts'
import { VduseDevice } from '../transport/vduse/device-fd.ts'
import { VduseTransport } from '../transport/vduse/transport.ts'
import { MemoryTable } from '../transport/vhost-user/memory-table.ts'
import { VhostUserTransport } from '../transport/vhost-user/transport.ts'
import { DeviceService, type TransportMaker } from './device-service.ts'
import type { CloseTap, DeviceWorkerMessage, OpenTap, ServeDevice } from './worker-messages.ts'

declare const self: Worker

const post = (message: DeviceWorkerMessage): void => self.postMessage(message)

let tap: Tap | null = null

const open = ({ tap: options }: OpenTap): void => {
  try {
    tap = new Tap(options)
    const { name, index, created, hasVnetHdr, fds } = tap
    const mtu = tap.link()?.mtu ?? options.mtu ?? 1500
    const useless = uselessFeatures(tap.supportedOffloads)
    post({ kind: 'opened', tap: { name, index, created, hasVnetHdr, mtu, fds, uselessFeatures: useless } })
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

const transportMaker =
  ({ transport, pairs }: ServeDevice): TransportMaker =>
  (device, engine, log) => {
    switch (transport.kind) {
      case 'vduse':
        for (const [index, fd] of transport.kickFds.entries()) engine.setKick(index, fd)
        return new VduseTransport(new VduseDevice(transport.fd), device, transport.kickFds, (what) =>
          log('warning', what),
        )
      case 'vhost-user':
        return new VhostUserTransport({
          endpoint: transport.endpoint,
          memory: new MemoryTable(transport.memory),
          device,
          rings: engine,
          pairs: pairs.length,
          sendFrame: (frame) => tap?.send(frame),
          log,
        })
    }
  }

self.onmessage = ({ data }: MessageEvent<OpenTap | CloseTap | ServeDevice>) => {
  if (data.kind === 'open') open(data)
  else if (data.kind === 'close') close()
  else if (tap !== null) new DeviceService(tap, data, transportMaker(data), post).run()
}
