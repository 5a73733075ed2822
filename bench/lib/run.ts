import type { NativeProcess } from '../../scripts/frontends/native-process.ts'
import type { Contestant, Row, Sample, Session, Who } from './row.ts'

/** How long a run takes. */
export interface Pace {
  rounds: number
  /** Of one measurement. */
  seconds: number
  /** Before each measurement, while the contestant is running again. */
  warmUpSeconds: number
}

/**
 * What became of a row. Samples are in the order of the rounds, so that those of one index were taken one after the
 * other.
 */
export interface Outcome {
  row: Row
  samples: Partial<Record<Who, Sample[]>>
  /** Why a contestant, or the whole row, was not measured. */
  missing: Partial<Record<Who | 'row', string>>
}

/** Stops or continues all processes of a session. A contestant that waits for its turn must not poll. */
const signalAll = (processes: readonly NativeProcess[], signal: 'SIGSTOP' | 'SIGCONT'): void => {
  for (const process of processes) process.signal(signal)
}

const message = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** Measures a row: each contestant once a round, in turn, so that other load on the machine affects all of them. */
export const runRow = async (
  row: Row,
  pace: Pace,
  unavailable: Partial<Record<Who, string>>,
  log: (text: string) => void,
): Promise<Outcome> => {
  const outcome: Outcome = { row, samples: {}, missing: {} }
  if (row.skipped !== undefined) {
    outcome.missing.row = row.skipped
    return outcome
  }
  await using opened = new AsyncDisposableStack()
  const sessions: [Who, Session][] = []
  const open = async ({ who, open }: Contestant): Promise<void> => {
    const reason = unavailable[who]
    if (reason !== undefined) {
      outcome.missing[who] = reason
      return
    }
    try {
      const session = opened.use(await open())
      signalAll(session.processes, 'SIGSTOP')
      sessions.push([who, session])
    } catch (error) {
      outcome.missing[who] = message(error)
      log(`  ${who}: ${message(error)}`)
    }
  }
  for (const contestant of row.contestants) await open(contestant)

  for (let round = 0; round < (row.rounds ?? pace.rounds); round++) {
    // The order changes, so that no contestant always follows the same other.
    const turn = round % 2 === 0 ? sessions : sessions.toReversed()
    for (const [who, session] of turn) {
      if (outcome.missing[who] !== undefined) continue
      signalAll(session.processes, 'SIGCONT')
      try {
        if (session.processes.length > 0) await Bun.sleep(pace.warmUpSeconds * 1000)
        const sample = await session.measure(row.seconds ?? pace.seconds)
        if (!Number.isFinite(sample.value)) throw new Error('nothing was counted')
        outcome.samples[who] ??= []
        outcome.samples[who].push(sample)
      } catch (error) {
        // A contestant with missing rounds cannot be compared.
        outcome.missing[who] = message(error)
        delete outcome.samples[who]
        log(`  ${who}: ${message(error)}`)
      } finally {
        signalAll(session.processes, 'SIGSTOP')
      }
    }
  }
  return outcome
}
