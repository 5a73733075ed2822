/**
 * Programs that the end-to-end tests run inside the guest, in one bundle: `bun e2e.js PROGRAM ARGUMENTS`. Each prints
 * its answer as one line of JSON; what goes wrong is an exception and exit code 1.
 */
import { ask, watch } from './api.ts'
import { receive, send } from './tcp.ts'
import { echo, probe } from './udp.ts'
import { serveVhost } from './vhost.ts'

const programs: Readonly<Record<string, (...words: string[]) => Promise<unknown> | unknown>> = {
  api: ask,
  'api-watch': watch,
  'tcp-receive': receive,
  'tcp-send': send,
  'udp-echo': echo,
  'udp-probe': probe,
  vhost: serveVhost,
}

const [name = '', ...words] = process.argv.slice(2)
const program = programs[name]
if (program === undefined) throw new Error(`no program ${name}`)
console.log(JSON.stringify(await program(...words)))
