import { connect, createServer } from 'node:net'

/** What went over a connection, as either end has seen it. */
export type Transferred = { bytes: number; sha256: string; ms: number }

/** Random, so that no two chunks are alike: what is lost, doubled or swapped changes the hash. Bytes. */
const BLOCK_BYTES = 1 << 20

/** `tcp-receive ADDRESS PORT`: says `listening`, takes one connection and reads it to its end. */
export const receive = (address = '', port = ''): Promise<Transferred> =>
  new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      server.close()
      const hash = new Bun.CryptoHasher('sha256')
      const started = performance.now()
      let bytes = 0
      socket.on('data', (chunk: Buffer) => {
        hash.update(chunk)
        bytes += chunk.length
      })
      socket.on('end', () => resolve({ bytes, sha256: hash.digest('hex'), ms: performance.now() - started }))
      socket.on('error', reject)
    })
    server.on('error', reject)
    server.listen(Number(port), address, () => console.log('listening'))
  })

/** `tcp-send ADDRESS PORT BYTES [UNTIL-STOPPED]`: sends that many bytes; with a fourth word goes on until SIGTERM. */
export const send = (address = '', port = '', total = '', untilStopped?: string): Promise<Transferred> =>
  new Promise((resolve, reject) => {
    let left = untilStopped === undefined ? Number(total) : Number.POSITIVE_INFINITY
    process.on('SIGTERM', () => {
      left = 0
    })
    const hash = new Bun.CryptoHasher('sha256')
    const block = new Uint8Array(BLOCK_BYTES)
    for (let at = 0; at < BLOCK_BYTES; at += 65536) crypto.getRandomValues(block.subarray(at, at + 65536))
    const numbers = new DataView(block.buffer)
    const started = performance.now()
    let bytes = 0
    const socket = connect(Number(port), address)
    const write = (): void => {
      while (left > 0) {
        // Each block differs from the one before it at every page.
        for (let at = 0; at < BLOCK_BYTES; at += 4096) numbers.setFloat64(at, bytes + at)
        const piece = Buffer.from(block.subarray(0, Math.min(BLOCK_BYTES, left)))
        hash.update(piece)
        bytes += piece.length
        left -= piece.length
        if (!socket.write(piece)) return
      }
      socket.end()
    }
    socket.on('connect', write)
    socket.on('drain', write)
    socket.on('close', () => resolve({ bytes, sha256: hash.digest('hex'), ms: performance.now() - started }))
    socket.on('error', reject)
  })
