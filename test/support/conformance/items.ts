import { commonItems } from './common-items.ts'
import type { Item } from './item.ts'
import { netItems } from './net-items.ts'
import { packedItems } from './packed-items.ts'
import { ringItems } from './ring-items.ts'

/**
 * What a driver can see of a card, whatever carries it: items 1 to 48. Over vhost-user on both layouts, over VDUSE on
 * split rings.
 */
export const items: readonly Item[] = [...commonItems, ...ringItems, ...packedItems, ...netItems]
