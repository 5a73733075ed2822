import { namespaceRefusal } from '../../scripts/frontends/network-namespace.ts'

export { NetworkNamespace } from '../../scripts/frontends/network-namespace.ts'

/** Why tests with real interfaces cannot run here, or null if they can. */
export const noRealTaps: string | null = namespaceRefusal()?.why ?? null

if (noRealTaps !== null) console.warn(`skipped, tests with real TAPs: ${noRealTaps}`)
