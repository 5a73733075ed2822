import { createServer } from 'node:net'
import { placeSocket } from '../../src/admin/unix-socket.ts'
import { listenForFrontends } from '../../src/card/listen-for-frontends.ts'
import { writePidFile } from '../../src/cli/pid-file.ts'

// Has all three kinds of names, says so, and ends with its stdin.
const [pidPath, socketPath, adminPath] = process.argv.slice(2) as [string, string, string]
{
  using _pid = await writePidFile(pidPath)
  const frontends = await listenForFrontends(socketPath)
  using _fd = frontends.fd
  using _name = frontends.name
  const server = createServer()
  using _admin = await placeSocket(adminPath, (path) => new Promise((resolve) => server.listen(path, () => resolve())))
  process.stdout.write('ready\n')
  for await (const _ of console);
  server.close()
}
process.exit()
