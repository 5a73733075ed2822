import type { NativeProcess } from '../../scripts/frontends/native-process.ts'

/**
 * A contestant: this program, DPDK's vhost-user device on its TAP, QEMU's own TAP backend, the limit of a TAP, the
 * limit with io_uring, or this program without an offload or with fewer queues.
 */
export type Who = 'vduse-net' | 'DPDK' | 'QEMU' | 'limit' | 'io_uring' | 'without USO' | 'one pair'

/** One measurement. */
export interface Sample {
  /** In the row's unit. */
  value: number
  /** Processor time of the device's process for each packet, or each GiB where the row says so, in nanoseconds. */
  cpuNs?: number
  /** What else was seen, for the JSON. */
  details?: Record<string, number>
}

/** A contestant, set up. */
export interface Session extends AsyncDisposable {
  /** What runs for it. All of it is stopped while others are measured: some of it polls. */
  readonly processes: readonly NativeProcess[]
  /** Measures for so many seconds. */
  measure(seconds: number): Promise<Sample>
}

/** One of those that a row compares. */
export interface Contestant {
  who: Who
  open(): Promise<Session>
}

/** What is to be reached: so many times the value of another, or a value. */
export interface Goal {
  /** Of whose value the factor is; without it `factor` is a value. */
  against?: Who
  is: 'at least' | 'at most'
  factor: number
  /** Compares processor time instead of the value. */
  cpu?: boolean
}

/** A line of the table. */
export interface Row {
  id: string
  title: string
  unit: string
  better: 'higher' | 'lower'
  /** What `cpuNs` is for, where it is measured. */
  cpuPer?: 'packet' | 'GiB'
  contestants: readonly Contestant[]
  goals: readonly Goal[]
  /** Why this row is not measured at all. */
  skipped?: string
  /** Further rounds tell nothing new: it is a length of time or an amount of memory. */
  rounds?: number
  /** Seconds of a measurement, where the run's do not fit. */
  seconds?: number
}
