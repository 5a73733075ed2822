const LENGTH_MAX = 60

/** An untrusted value for a message: one line, no control characters, of limited length. */
export const shown = (value: string): string => {
  const cut = value.length > LENGTH_MAX ? `${value.slice(0, LENGTH_MAX)}…` : value
  return /^[\x21-\x7e…]+$/.test(cut) ? cut : JSON.stringify(cut)
}
