import { readdirSync, readlinkSync } from 'node:fs'
import { native } from '../../../src/sys/native.ts'
import { workerUrl } from '../../../src/sys/worker.ts'

/**
 * A compiled program whose Workers load the native library after its main thread, and one after the other: prints what
 * each saw as a line of JSON, then which library the process has open.
 */
const main = async (): Promise<void> => {
  for (let i = 0; i < 2; i++) {
    const worker = new Worker(workerUrl('fault-worker.ts'))
    const { slot, hits } = await new Promise<{ slot: number; hits: number }>((done, fail) => {
      worker.onmessage = (event) => done(event.data)
      worker.onerror = (event) => fail(new Error(event.message))
    })
    console.log(JSON.stringify({ slot, hits, seenFromMain: native.vn_guard_hits(slot) }))
    worker.terminate()
  }

  const files = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return []
    }
  })
  console.log(JSON.stringify(files.filter((name) => name.startsWith('/memfd:vduse-net'))))
}

void main()
