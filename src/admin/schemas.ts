import { z } from '@hono/zod-openapi'
import { dropReasons } from '../abi/drop-reason.ts'

const counter = z.int().nonnegative()
const names = z.array(z.string()).readonly()

/** JSON of {@link import('../card/card.ts').DeviceView}. */
export const deviceSchema = z
  .object({
    name: z.string().openapi({ example: 'tap0' }),
    transport: z.enum(['vduse', 'vhost-user']),
    attached: z.boolean().openapi({ description: 'Added to the vDPA bus, or connected to a front-end.' }),
    bind: z.enum(['virtio', 'vhost', 'none']),
    mac: z.string().openapi({
      description: 'The address in use: ownMac, unless the driver has set another one.',
      example: '02:00:5e:10:00:01',
    }),
    ownMac: z
      .string()
      .openapi({ description: 'The address that the card was made with.', example: '02:00:5e:10:00:01' }),
    mtu: z.int(),
    linkUp: z.boolean().openapi({ description: 'The link state that the driver sees.' }),
    tap: z.object({
      name: z.string(),
      index: z.int().nullable().openapi({ description: 'Null while the interface is gone.' }),
      vnetHdr: z.boolean(),
      carrier: z.boolean(),
    }),
    status: z.object({ bits: z.int(), names }).openapi({
      description: 'Device status field.',
      example: { bits: 15, names: ['ACKNOWLEDGE', 'DRIVER', 'DRIVER_OK', 'FEATURES_OK'] },
    }),
    features: z.object({ offered: names, negotiated: names }),
    driver: z.string().nullable().openapi({ description: 'Driver bound on the vDPA bus.', example: 'virtio_vdpa' }),
    queuePairs: z.int(),
    uptimeSeconds: z.number(),
    pid: z.int(),
    version: z.string(),
    resets: counter.openapi({ description: 'How often the driver has reset the device.' }),
    vduse: z.object({ apiVersion: z.int(), features: names }).nullable(),
    vhostUser: z.object({ socket: z.string() }).nullable(),
  })
  .openapi('Device')

/** JSON of {@link import('../card/card.ts').QueueView}. */
const queueSchema = z
  .object({
    index: z.int(),
    direction: z.enum(['rx', 'tx']).openapi({ description: "The driver's: rx is what it receives." }),
    size: z.int(),
    ready: z.boolean(),
    running: z.boolean(),
    quarantined: z.string().nullable().openapi({ description: 'Why the queue is not served until the next reset.' }),
    nextAvail: z.int(),
    nextUsed: z.int(),
    pending: z.int().openapi({ description: 'Chains made available and not taken yet.' }),
    kicks: counter,
    calls: counter,
    batches: counter,
    packets: counter,
    bytes: counter,
    gsoPackets: counter,
    csumPackets: counter,
  })
  .openapi('Queue')

export const queuesSchema = z.object({ queues: z.array(queueSchema).readonly() }).openapi('Queues')

const trafficSchema = z
  .object({ packets: counter, bytes: counter, gsoPackets: counter, csumPackets: counter })
  .openapi('Traffic')

/** JSON of {@link import('../card/card.ts').StatsView}. */
export const statsSchema = z
  .object({
    rx: trafficSchema,
    tx: trafficSchema,
    drops: z.record(z.enum(dropReasons), counter),
    logLines: z
      .object({
        leftOut: counter.openapi({ description: 'Too many of one kind came.' }),
        lost: counter.openapi({ description: 'The reader of stderr was too slow.' }),
      })
      .openapi({ description: 'Log lines that were not written.' }),
  })
  .openapi('Stats')

/** What PATCH /v1/device can change. */
export const deviceChangeSchema = z
  .strictObject({ linkUp: z.boolean().openapi({ description: "The operator's side of the link." }) })
  .openapi('DeviceChange')

export const readySchema = z.object({ ready: z.boolean(), reason: z.string() }).openapi('Ready')

export const healthSchema = z.object({ status: z.literal('ok') }).openapi('Health')

export const problemSchema = z
  .object({
    type: z.literal('about:blank'),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    faults: z
      .array(z.object({ where: z.string(), message: z.string() }))
      .readonly()
      .optional(),
  })
  .openapi('Problem')

/** No route has a query. An unknown key is an error, so that the caller sees the mistake. */
export const noQuery = z.strictObject({})
