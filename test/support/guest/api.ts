/** What the admin API answered. `body` is the JSON, or the text of anything else. */
export type ApiAnswer = { status: number; body: unknown; ms: number }

/** `api SOCKET METHOD PATH [JSON]`: one request. */
export const ask = async (socket = '', method = 'GET', path = '/', json?: string): Promise<ApiAnswer> => {
  const started = performance.now()
  const response = await fetch(`http://localhost${path}`, {
    unix: socket,
    method,
    ...(json === undefined ? {} : { body: json, headers: { 'content-type': 'application/json' } }),
  })
  const text = await response.text()
  const isJson = (response.headers.get('content-type') ?? '').includes('json')
  return { status: response.status, body: isJson ? JSON.parse(text) : text, ms: performance.now() - started }
}

/** How the API has answered over some time. `statuses` counts answers, by path and status. */
export type ApiWatch = { requests: number; slowestMs: number; statuses: Record<string, number>; failures: string[] }

/** `api-watch SOCKET PATH...`: asks the paths in turn, one request after the other, until SIGTERM. */
export const watch = async (socket = '', ...paths: string[]): Promise<ApiWatch> => {
  const seen: ApiWatch = { requests: 0, slowestMs: 0, statuses: {}, failures: [] }
  let running = true
  process.on('SIGTERM', () => {
    running = false
  })
  console.log('watching')
  while (running) {
    for (const path of paths) {
      seen.requests++
      try {
        const { status, ms } = await ask(socket, 'GET', path)
        seen.slowestMs = Math.max(seen.slowestMs, ms)
        const key = `${path} ${status}`
        seen.statuses[key] = (seen.statuses[key] ?? 0) + 1
      } catch (error) {
        seen.failures.push(`${path}: ${error}`)
      }
    }
  }
  return seen
}
