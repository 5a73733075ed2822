import { z } from 'zod'

type Schema = Parameters<typeof z.fromJSONSchema>[0]
type Responses = Record<string, { content?: Record<string, { schema: unknown }> }>

/** As much of an OpenAPI 3.1 document as is looked at. */
export type OpenApi = {
  readonly openapi: string
  readonly paths: Record<string, Record<string, { responses: Responses }>>
  readonly components: { readonly schemas: Record<string, unknown> }
}

/** Refuses properties that the schema does not name: an API that answers more than it says is not described. */
const closed = (schema: unknown): unknown => {
  if (Array.isArray(schema)) return schema.map(closed)
  if (typeof schema !== 'object' || schema === null) return schema
  const entries = Object.entries(schema).map(([key, value]) => [key, closed(value)])
  const object = Object.fromEntries(entries)
  return 'properties' in schema ? { additionalProperties: false, ...object } : object
}

/** What the document says about one answer, as a parser of bodies. Throws if it says nothing. */
export const responseSchema = (
  document: OpenApi,
  path: string,
  method: string,
  status: number,
  mediaType: string,
): z.ZodType => {
  const responses = document.paths[path]?.[method]?.responses ?? {}
  const schema = (responses[status] ?? responses.default)?.content?.[mediaType]?.schema
  if (schema === undefined) throw new Error(`${method} ${path}: ${status} with ${mediaType} is not described`)
  const whole = closed({ $defs: document.components.schemas, ...(schema as object) })
  return z.fromJSONSchema(JSON.parse(JSON.stringify(whole).replaceAll('#/components/schemas/', '#/$defs/')) as Schema)
}
