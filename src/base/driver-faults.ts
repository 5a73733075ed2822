/**
 * How a driver can break the specification so that a ring is of no more use. The index is the fault's number, by which
 * it is known in other threads and compared.
 */
const driverFaults = [
  // Where the ring lies.
  'RING_MISALIGNED',
  'RING_UNMAPPED',
  // Where it starts.
  'BASE_OUT_OF_RANGE',
  'BASE_UNKNOWN',
  'INFLIGHT_INVALID',
  // What it holds.
  'AVAIL_OVERRUN',
  'HEAD_OUT_OF_RANGE',
  'HEAD_IN_FLIGHT',
  'TAIL_NOT_AVAILABLE',
  // Memory that was in use is gone.
  'MEMORY_VANISHED',
] as const
/** The name of a fault. */
export type DriverFaultCode = (typeof driverFaults)[number]

/** The number of each fault. */
export const DRIVER_FAULT = Object.freeze(
  Object.fromEntries(driverFaults.map((code, number) => [code, number])),
) as Readonly<Record<DriverFaultCode, number>>
