import { writeSync } from 'node:fs'
import { LineRing } from './line-ring.ts'

declare const self: Worker

const LINE_FEED = 0x0a

const linesIn = (bytes: Uint8Array): number => {
  let lines = 0
  for (const byte of bytes) if (byte === LINE_FEED) lines++
  return lines
}

/** Writes as much as possible, and returns how many bytes. A full disk accepts a part, or nothing. */
const write = (fd: number, bytes: Uint8Array): number => {
  let written = 0
  try {
    while (written < bytes.length) written += writeSync(fd, bytes, written)
  } catch {
    // The caller counts the lines that are missing.
  }
  return written
}

/** Writes the ring's bytes to a file, without end. This thread may block on the file; no other thread waits for it. */
self.onmessage = ({ data }: MessageEvent<{ readonly fd: number; readonly ring: SharedArrayBuffer }>) => {
  const ring = new LineRing(data.ring)
  let lastByte = LINE_FEED
  /** The last line written is incomplete. */
  let torn = false
  for (;;) {
    const bytes = ring.take()
    if (torn && write(data.fd, Uint8Array.of(LINE_FEED)) === 1) [torn, lastByte] = [false, LINE_FEED]
    const written = torn ? 0 : write(data.fd, bytes)
    if (written > 0) lastByte = bytes[written - 1]!
    if (written < bytes.length) torn = lastByte !== LINE_FEED
    ring.done(bytes.length, written < bytes.length, linesIn(bytes.subarray(written)))
  }
}
