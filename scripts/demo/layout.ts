/** As wide as a terminal is that nobody has made wider. */
export const COLUMNS = 80

/** Where to break a line of more than `width` columns. */
const breakBefore = (line: string, width: number): number => {
  const start = line.search(/\S/)
  const fitting = line.lastIndexOf(' ', width)
  if (fitting > start) return fitting
  const comma = line.lastIndexOf(',', width - 1)
  if (comma > start) return comma + 1
  const later = line.indexOf(' ', start)
  return later === -1 ? line.length : later
}

/**
 * `text` in lines of at most `width` columns, broken at spaces; every line but the first is indented by `hanging`
 * spaces more. A line that is too wide because it is a table loses spaces first. A single word that is too long is
 * broken behind a comma, or else stays whole.
 */
export const wrap = (text: string, width: number, hanging = 2): string[] => {
  let rest = text.trimEnd()
  if (rest.length > width) rest = rest.replace(/(\S) {2,}(?=\S)/g, '$1  ')
  const lines: string[] = []
  let indent = ''
  while (indent.length + rest.length > width) {
    const at = breakBefore(rest, width - indent.length)
    if (at === rest.length) break
    lines.push(indent + rest.slice(0, at).trimEnd())
    rest = rest.slice(at).trimStart()
    indent = ' '.repeat(hanging)
  }
  lines.push(indent + rest)
  return lines
}
