/**
 * A front-end in a process of its own, to be killed in the middle of its traffic: `bun vhost-user-victim.ts SOCKET`.
 */
import { testFrame } from './packet-socket.ts'
import { Frontend, VhostUserClient } from './vhost-user-client.ts'

const frontend = new Frontend(VhostUserClient.connect(process.argv[2]!), { memoryBytes: 1 << 22, ringSize: 256 })
frontend.negotiate()
frontend.shareMemory()
for (const ring of frontend.rings) frontend.startRing(ring)
frontend.settle()

const { rx, tx, memory } = frontend
const frame = testFrame(1)
const outgoing = memory.allocate(12 + frame.length)
memory.bytes(outgoing, 12 + frame.length).set(frame, 12)
const incoming = memory.allocate(2048)

for (let round = 0; ; round++) {
  while (tx.driver.add([{ address: outgoing, length: 12 + frame.length }]) >= 0);
  while (rx.driver.add([{ address: incoming, length: 2048, writable: true }]) >= 0);
  for (const ring of [tx, rx]) ring.publish()
  for (const ring of [tx, rx]) while (ring.driver.reap() !== undefined);
  if (round === 20) console.log('in mid-traffic')
}
