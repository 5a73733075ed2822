/** Width of a terminal that nobody has made wider. */
export const COLUMNS = 80

/**
 * `label` and `text` in lines of at most {@link COLUMNS} columns, broken at spaces; `text` begins at the same column in
 * each. A longer word stays whole, so that it can be copied. Ends with a line feed.
 */
export const wrapped = (label: string, text: string): string => {
  const width = COLUMNS - label.length
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`
    else lines.push(word)
  }
  return `${label}${lines.join(`\n${' '.repeat(label.length)}`)}\n`
}
