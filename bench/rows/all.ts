import type { Rig } from '../lib/rig.ts'
import type { Row } from '../lib/row.ts'
import { footprintRows } from './footprint.ts'
import { latencyRows } from './latency.ts'
import { offloadRows } from './offloads.ts'
import { packetRows } from './packets.ts'
import { tcpRows } from './tcp.ts'

/** All rows of the table, in its order. */
export const allRows = (rig: Rig, quick: boolean): Row[] => [
  ...packetRows(rig),
  ...offloadRows(rig),
  ...tcpRows(rig),
  ...latencyRows(rig),
  ...footprintRows(rig, quick),
]
