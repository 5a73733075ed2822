import type { Lab } from '../../scripts/lab/lab.ts'
import type { FrontendRig } from './frontend-rig.ts'

const IPERF_PORT = 7602

/** Bound of one measurement. */
const IPERF_MS = 120_000

/** What iperf3 counted, of both directions together. */
export interface IperfResult {
  receivedBytes: number
  bitsPerSecond: number
}

/** Runs iperf3 in the guest against a server on this machine. `options` are those of the client. */
export const iperf = async (rig: FrontendRig, guest: Lab, host: string, options: string): Promise<IperfResult> => {
  const words = rig.guestProgram('iperf3', '-s', '-1', '--forceflush', '-B', host, '-p', String(IPERF_PORT))
  await using server = rig.start('iperf3', words)
  await server.line(/Server listening/)
  const output = await guest.ok(`iperf3 -c ${host} -p ${IPERF_PORT} -J ${options}`, { timeoutMs: IPERF_MS })
  const { end } = JSON.parse(output)
  const directions = [end.sum_received, end.sum_received_bidir_reverse].filter((sum) => sum !== undefined)
  const total = (key: 'bytes' | 'bits_per_second'): number => directions.reduce((sum, part) => sum + part[key], 0)
  return { receivedBytes: total('bytes'), bitsPerSecond: total('bits_per_second') }
}
