/**
 * Violations of the specification by a driver that leave a ring unusable. The index is the fault's number, by which
 * threads exchange and compare it.
 */
const driverFaults = [
  // The ring's addresses.
  'RING_MISALIGNED',
  'RING_UNMAPPED',
  // The ring's base.
  'BASE_OUT_OF_RANGE',
  'BASE_UNKNOWN',
  'INFLIGHT_INVALID',
  // The ring's contents.
  'AVAIL_OVERRUN',
  'HEAD_OUT_OF_RANGE',
  'HEAD_IN_FLIGHT',
  'TAIL_NOT_AVAILABLE',
  // Memory in use has vanished.
  'MEMORY_VANISHED',
] as const
/** The name of a fault. */
export type DriverFaultCode = (typeof driverFaults)[number]

/** The number of each fault. */
export const DRIVER_FAULT = Object.freeze(
  Object.fromEntries(driverFaults.map((code, number) => [code, number])),
) as Readonly<Record<DriverFaultCode, number>>
