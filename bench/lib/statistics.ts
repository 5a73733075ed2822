/** Median, smallest and largest of some measurements. */
export interface Summary {
  median: number
  min: number
  max: number
}

export const median = (values: readonly number[]): number => {
  if (values.length === 0) throw new Error('no values')
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export const summarize = (values: readonly number[]): Summary => ({
  median: median(values),
  min: Math.min(...values),
  max: Math.max(...values),
})

/** The value below which `share` of them lie: 0.99 is p99. `sorted` is in ascending order. */
export const percentile = (sorted: readonly number[], share: number): number => {
  if (sorted.length === 0) throw new Error('no values')
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!
}
