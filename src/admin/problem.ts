import { STATUS_CODES } from 'node:http'

/** An error in one part of a request: `where` is a path like `json.linkUp` or `query.x`. */
export interface Fault {
  readonly where: string
  readonly message: string
}

/** Problem details of RFC 9457. */
export interface Problem {
  readonly type: 'about:blank'
  readonly title: string
  readonly status: number
  readonly detail: string
  readonly faults?: readonly Fault[]
}

/** Media type of a {@link Problem}. */
export const PROBLEM_TYPE = 'application/problem+json'

/** The problem for a status code. `detail` is for people and never contains a stack trace. */
export const problem = (status: number, detail: string, faults?: readonly Fault[]): Problem => ({
  type: 'about:blank',
  title: STATUS_CODES[status] ?? 'Error',
  status,
  detail,
  ...(faults === undefined ? {} : { faults }),
})

/** A problem as a response. */
export const problemResponse = (value: Problem, headers: Readonly<Record<string, string>> = {}): Response =>
  new Response(JSON.stringify(value), { status: value.status, headers: { ...headers, 'content-type': PROBLEM_TYPE } })
