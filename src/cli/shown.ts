const LENGTH_MAX = 60

/** A value from outside as it may appear in a message: one line, no control characters, not endless. */
export const shown = (value: string): string => {
  const cut = value.length > LENGTH_MAX ? `${value.slice(0, LENGTH_MAX)}…` : value
  return /^[\x21-\x7e…]+$/.test(cut) ? cut : JSON.stringify(cut)
}
