import { writeSync } from 'node:fs'
import { nonblockingSink } from './line-sink.ts'
import { LineWriter } from './line-writer.ts'

/** How long to wait for a slow reader. */
const FINISH_MS = 1_000

/**
 * Writes why the program ends to stderr, and waits at most a second for a slow reader. Used when no card runs, so a
 * regular file is written to directly.
 */
export const writeFinalError = async (text: string): Promise<void> => {
  using sink = nonblockingSink(2)
  try {
    if (sink === null) writeSync(2, text)
  } catch {
    // A closed descriptor or a full disk: nothing can be reported.
  }
  if (sink === null) return
  const writer = new LineWriter(sink, () => '')
  writer.write(text)
  await writer.finish(FINISH_MS)
}
