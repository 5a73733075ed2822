/**
 * `bun requests.js WHERE REQUESTS`: makes HTTP requests one after the other, byte for byte as given, and prints the
 * answers as JSON. WHERE: the path of a unix socket, or a port of 127.0.0.1.
 */
import { request } from 'node:http'

/** One request. Without a Host header in `headers` it is `localhost`, or the address. */
export type Asked = {
  readonly method?: string
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
}

/** Its answer; the body as it came. Header names are in lower case. */
export type Answered = { readonly status: number; readonly headers: Record<string, string>; readonly body: string }

const [where = '', list = '[]'] = process.argv.slice(2)
const target = where.startsWith('/') ? { socketPath: where } : { host: '127.0.0.1', port: Number(where) }

const ask = ({ method = 'GET', path, headers = {}, body }: Asked): Promise<Answered> =>
  new Promise((resolve, reject) => {
    const sent = request({ ...target, method, path, headers, agent: false }, (answer) => {
      const parts: Buffer[] = []
      answer.on('data', (part: Buffer) => parts.push(part))
      answer.on('end', () =>
        resolve({
          status: answer.statusCode ?? 0,
          headers: Object.fromEntries(Object.entries(answer.headers).map(([name, value]) => [name, String(value)])),
          body: Buffer.concat(parts).toString(),
        }),
      )
      answer.on('error', reject)
    })
    sent.on('error', reject)
    sent.end(body)
  })

const answers: Answered[] = []
for (const asked of JSON.parse(list) as Asked[]) answers.push(await ask(asked))
console.log(JSON.stringify(answers))
