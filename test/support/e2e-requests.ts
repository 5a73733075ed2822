import { quote } from '../../scripts/lab/lab.ts'
import { answerOf, type Lab } from './e2e-lab.ts'
import { pushedProgram } from './e2e-pushed.ts'
import type { Answered, Asked } from './guest/requests.ts'

export type { Answered, Asked }

/**
 * Makes these requests in the guest, to a unix socket or to a port of 127.0.0.1, and returns the answers in the same
 * order.
 */
export const requests = async (lab: Lab, where: string | number, list: readonly Asked[]): Promise<Answered[]> => {
  const words = [...(await pushedProgram(lab, 'requests')), String(where), JSON.stringify(list)]
  return answerOf<Answered[]>(await lab.ok(words.map(quote).join(' ')))
}

/** A change of the card. */
export const patch = (body: string, headers: Readonly<Record<string, string>> = {}): Asked => ({
  method: 'PATCH',
  path: '/v1/device',
  headers: { 'content-type': 'application/json', ...headers },
  body,
})
