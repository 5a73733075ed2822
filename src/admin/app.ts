import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import { HTTPException } from 'hono/http-exception'
import { methodNotAllowed } from 'hono/method-not-allowed'
import { UserError } from '../base/errors.ts'
import { type LogLosses, logger } from '../base/log.ts'
import type { Card } from '../card/card.ts'
import { onlyBearer, onlyHosts, onlyJsonChanges, onlySameSite, safeHeaders } from './guards.ts'
import { cardMetrics } from './metrics.ts'
import { type Fault, PROBLEM_TYPE, problem, problemResponse } from './problem.ts'
import {
  deviceChangeSchema,
  deviceSchema,
  healthSchema,
  noQuery,
  problemSchema,
  queuesSchema,
  readySchema,
  statsSchema,
} from './schemas.ts'

/** What the API serves, and which clients it answers. */
export interface AppOptions {
  readonly card: Card
  /** Accepted values of the Host header, in lower case. */
  readonly hosts: ReadonlySet<string>
  /** The bearer token; null on a unix socket, whose mode decides who may connect. */
  readonly token: string | null
  readonly version: string
  readonly logLosses: () => LogLosses
}

const log = logger('admin')

const json = <T>(schema: T, description: string) => ({ description, content: { 'application/json': { schema } } })
const problemContent = (description: string) => ({
  description,
  content: { [PROBLEM_TYPE]: { schema: problemSchema } },
})

const healthRoute = createRoute({
  method: 'get',
  path: '/healthz',
  summary: 'Does the program answer?',
  request: { query: noQuery },
  responses: { 200: json(healthSchema, 'It does.'), default: problemContent('Refused.') },
})

const readyRoute = createRoute({
  method: 'get',
  path: '/readyz',
  summary: 'Can packets flow?',
  request: { query: noQuery },
  responses: {
    200: json(readySchema, 'They can.'),
    503: json(readySchema, 'Not now; `reason` says what is missing.'),
    default: problemContent('Refused.'),
  },
})

const metricsRoute = createRoute({
  method: 'get',
  path: '/metrics',
  summary: 'Metrics for Prometheus',
  request: { query: noQuery },
  responses: {
    200: { description: 'Text format 0.0.4.', content: { 'text/plain': { schema: z.string() } } },
    default: problemContent('Refused.'),
  },
})

const getDeviceRoute = createRoute({
  method: 'get',
  path: '/v1/device',
  summary: 'The card and its driver',
  request: { query: noQuery },
  responses: { 200: json(deviceSchema, 'The card.'), default: problemContent('Refused.') },
})

const patchDeviceRoute = createRoute({
  method: 'patch',
  path: '/v1/device',
  summary: 'Change the card while it runs',
  request: {
    query: noQuery,
    body: { required: true, content: { 'application/json': { schema: deviceChangeSchema } } },
  },
  responses: {
    200: json(deviceSchema, 'The card after the change.'),
    400: problemContent('Not what can be changed.'),
    409: problemContent('This card cannot change that now.'),
    415: problemContent('Not JSON.'),
    default: problemContent('Refused.'),
  },
})

const queuesRoute = createRoute({
  method: 'get',
  path: '/v1/queues',
  summary: 'Every virtqueue: indices and counters',
  request: { query: noQuery },
  responses: { 200: json(queuesSchema, 'The queues.'), default: problemContent('Refused.') },
})

const statsRoute = createRoute({
  method: 'get',
  path: '/v1/stats',
  summary: 'Traffic and drops, in total',
  request: { query: noQuery },
  responses: { 200: json(statsSchema, 'Totals.'), default: problemContent('Refused.') },
})

/** The admin API as an application without a socket, so that a test can call `app.request()`. */
export const createApp = ({ card, hosts, token, version, logLosses }: AppOptions): OpenAPIHono => {
  const app = new OpenAPIHono({
    defaultHook: (result) => {
      if (result.success) return undefined
      const faults = result.error.issues.map(
        (issue): Fault => ({ where: [result.target, ...issue.path].map(String).join('.'), message: issue.message }),
      )
      return problemResponse(problem(400, 'the request does not fit the API', faults))
    },
  })

  app.use(safeHeaders)
  app.use(onlyHosts(hosts))
  app.use(onlySameSite)
  if (token !== null) app.use(onlyBearer(token))
  app.use(
    methodNotAllowed({
      app,
      onMethodNotAllowed: (_, methods) =>
        problemResponse(problem(405, `use ${methods.join(' or ')}`), { allow: methods.join(', ') }),
    }),
  )
  app.use(onlyJsonChanges)
  app.notFound((context) => problemResponse(problem(404, `no ${context.req.path}; see /openapi.json`)))
  app.onError((error, context) => {
    if (error instanceof UserError) return problemResponse(problem(409, `${error.message}; ${error.hint}`))
    if (error instanceof HTTPException) return problemResponse(problem(error.status, error.message))
    log.error('{method} {path} failed: {error}', { method: context.req.method, path: context.req.path, error })
    return problemResponse(problem(500, 'the log of vduse-net says why'))
  })

  const metrics = cardMetrics(card, logLosses)
  app.openapi(healthRoute, (context) => context.json({ status: 'ok' as const }, 200))
  app.openapi(readyRoute, (context) => {
    const state = card.ready()
    return context.json(state, state.ready ? 200 : 503)
  })
  app.openapi(metricsRoute, async (context) =>
    context.text(await metrics.text(), 200, { 'content-type': metrics.contentType }),
  )
  app.openapi(getDeviceRoute, (context) => context.json(card.device(), 200))
  app.openapi(patchDeviceRoute, async (context) => {
    const { linkUp } = context.req.valid('json')
    await card.setLinkUp(linkUp)
    log.info(`PATCH /v1/device: the operator's side of the link is ${linkUp ? 'up' : 'down'}`)
    return context.json(card.device(), 200)
  })
  app.openapi(queuesRoute, (context) => context.json({ queues: card.queues() }, 200))
  app.openapi(statsRoute, (context) => context.json({ ...card.stats(), logLines: logLosses() }, 200))

  if (token !== null)
    app.openAPIRegistry.registerComponent('securitySchemes', 'bearer', { type: 'http', scheme: 'bearer' })
  app.doc31('/openapi.json', {
    openapi: '3.1.0',
    info: {
      title: 'vduse-net',
      version,
      description: 'A virtio-net card in userspace: what it does, and switches for it.',
    },
    ...(token === null ? {} : { security: [{ bearer: [] }] }),
  })
  return app
}
