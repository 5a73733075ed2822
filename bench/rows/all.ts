import type { Rig } from '../lib/rig.ts'
import type { Row } from '../lib/row.ts'
import { packetRows } from './packets.ts'

/** All rows of the table, in its order. */
export const allRows = (rig: Rig): Row[] => [...packetRows(rig)]
