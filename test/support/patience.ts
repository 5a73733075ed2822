/**
 * How long a test waits for what must come, ms. It bounds hangs, not speed: a machine that has ten times too much to do
 * must not fail a test.
 */
export const HANG_MS = 60_000

/**
 * The bound on a whole test, for `setDefaultTimeout`, which holds for one file. scripts/parts.ts sets the same for all
 * of them.
 */
export const TEST_MS = 300_000
