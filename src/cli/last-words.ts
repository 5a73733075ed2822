import { writeSync } from 'node:fs'
import { nonblockingSink } from './line-sink.ts'
import { LineWriter } from './line-writer.ts'

/** A reader who has not read by then is stuck. */
const PATIENCE_MS = 1_000

/**
 * Tells the reader of stderr why the program ends, and waits for that reader no more than a moment. For when no card
 * runs: a file is written to directly.
 */
export const sayLast = async (text: string): Promise<void> => {
  using sink = nonblockingSink(2)
  try {
    if (sink === null) writeSync(2, text)
  } catch {
    // A closed descriptor or a full disk: there is nobody to tell.
  }
  if (sink === null) return
  const writer = new LineWriter(sink, () => '')
  writer.write(text)
  await writer.finish(PATIENCE_MS)
}
