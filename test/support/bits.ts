/** The set with this bit number alone. */
export const bit = (number: number): bigint => 1n << BigInt(number)

/** A 64-bit set of these bit numbers. */
export const bits = (...numbers: readonly number[]): bigint => numbers.reduce((set, number) => set | bit(number), 0n)
