import { createHash, timingSafeEqual } from 'node:crypto'
import type { MiddlewareHandler } from 'hono'
import { problem, problemResponse } from './problem.ts'

const refuse = (status: number, detail: string, headers?: Readonly<Record<string, string>>): Response =>
  problemResponse(problem(status, detail), headers)

/**
 * Answers requests with an accepted Host only: a web page that rebinds its own name to a loopback address sends
 * another.
 */
export const onlyHosts =
  (hosts: ReadonlySet<string>): MiddlewareHandler =>
  async (context, next) => {
    const host = context.req.header('host')?.toLowerCase() ?? ''
    if (!hosts.has(host)) return refuse(421, `send Host: ${[...hosts].join(' or ')}`)
    return next()
  }

/** Refuses requests from web pages of other sites. A browser sets Sec-Fetch-Site or Origin on every such request. */
export const onlySameSite: MiddlewareHandler = async (context, next) => {
  const site = context.req.header('sec-fetch-site')
  if (site !== undefined && site !== 'same-origin' && site !== 'none') return refuse(403, 'a request of another site')
  const origin = context.req.header('origin')
  if (origin !== undefined && origin.toLowerCase() !== `http://${context.req.header('host')?.toLowerCase()}`)
    return refuse(403, 'a request of another origin')
  return next()
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest()

/**
 * Requires `Authorization: Bearer TOKEN`. Digests are compared, so that timing reveals neither content nor length. RFC
 * 6750 §3.
 */
export const onlyBearer = (token: string): MiddlewareHandler => {
  const wanted = digest(token)
  return async (context, next) => {
    const given = /^Bearer +([A-Za-z0-9._~+/-]+=*)$/i.exec(context.req.header('authorization') ?? '')?.[1]
    if (given === undefined)
      return refuse(401, 'send Authorization: Bearer TOKEN', { 'www-authenticate': 'Bearer realm="vduse-net"' })
    if (!timingSafeEqual(digest(given), wanted))
      return refuse(401, 'wrong token', { 'www-authenticate': 'Bearer realm="vduse-net", error="invalid_token"' })
    return next()
  }
}

/** Methods whose requests have a body. All others but GET, HEAD and POST need a CORS preflight in any case. */
const withBody = new Set(['POST', 'PUT', 'PATCH'])

/** Accepts bodies as application/json only: a form of a web page cannot send that without a CORS preflight. */
export const onlyJsonChanges: MiddlewareHandler = async (context, next) => {
  if (!withBody.has(context.req.method)) return next()
  const type = context.req.header('content-type')?.toLowerCase() ?? ''
  if (!/^application\/json(?: *; *charset="?utf-8"?)?$/.test(type))
    return refuse(415, 'send Content-Type: application/json')
  return next()
}

/** Forbids caching, content sniffing and framing of answers. */
export const safeHeaders: MiddlewareHandler = async (context, next) => {
  await next()
  context.header('Cache-Control', 'no-store')
  context.header('X-Content-Type-Options', 'nosniff')
  context.header('Content-Security-Policy', "default-src 'none'; frame-ancestors 'none'")
}
