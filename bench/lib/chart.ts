import { type RowResult, short } from './report.ts'
import type { Who } from './row.ts'

const COLOURS: Record<Who, string> = {
  'vduse-net': '#1a7f37',
  DPDK: '#0969da',
  QEMU: '#bf8700',
  limit: '#8c959f',
  io_uring: '#8c959f',
  'without USO': '#8c959f',
  'one pair': '#8c959f',
}

const WIDTH = 860
const LABEL_WIDTH = 226
const VALUE_WIDTH = 114
const BAR_HEIGHT = 14
const ROW_GAP = 12
const TOP = 56

const escapeXml = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

/** What the picture needs of a run. */
export interface ChartInput {
  date: string
  commit: string
  machine: { processors: number; model: string; kernel: string }
  rows: readonly RowResult[]
}

/**
 * Bars for each row, as long as the median, with a thin line from the smallest to the largest. Each row has a scale of
 * its own, since units differ. SVG that needs no fonts or scripts and is readable on a dark page.
 */
export const chart = ({ date, commit, machine, rows }: ChartInput): string => {
  const drawn = rows.filter(({ entries }) => entries.length > 0)
  const barWidth = WIDTH - LABEL_WIDTH - VALUE_WIDTH
  let y = TOP
  const parts: string[] = []
  for (const row of drawn) {
    const scale = Math.max(...row.entries.map(({ value }) => value.max)) || 1
    const length = (value: number): number => (value / scale) * barWidth
    const hint = row.better === 'higher' ? '' : ', lower is better'
    // Even a row of two bars has room for two lines.
    parts.push(text(8, y + 10, row.title, 'label'), text(8, y + 24, `${row.unit}${hint}`, 'about'))
    for (const { who, value } of row.entries) {
      const middle = y + BAR_HEIGHT / 2
      parts.push(
        `<rect x="${LABEL_WIDTH}" y="${y}" width="${length(value.median).toFixed(1)}" ` +
          `height="${BAR_HEIGHT - 3}" fill="${COLOURS[who]}"/>`,
        `<line x1="${(LABEL_WIDTH + length(value.min)).toFixed(1)}" ` +
          `x2="${(LABEL_WIDTH + length(value.max)).toFixed(1)}" ` +
          `y1="${middle - 1.5}" y2="${middle - 1.5}" class="spread"/>`,
        text(LABEL_WIDTH + Math.max(length(value.max), 2) + 6, y + 10, `${short(value.median)} ${who}`, 'value'),
      )
      y += BAR_HEIGHT
    }
    y += ROW_GAP
  }
  const about = `${date.slice(0, 10)}, ${commit}, ${machine.processors} x ${machine.model}, Linux ${machine.kernel}`
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y + 8}" role="img" ` +
      'aria-label="vduse-net beside its peers">',
    '<style>svg{background:#fff}text{font:12px sans-serif;fill:#1f2328}.title{font-weight:bold;font-size:15px}' +
      '.about,.value{font-size:11px;fill:#59636e}.spread{stroke:#1f2328;stroke-width:1}</style>',
    text(8, 20, 'vduse-net beside its peers and what a TAP can do at best', 'title'),
    text(8, 38, about, 'about'),
    ...parts,
    '</svg>',
    '',
  ].join('\n')
}

const text = (x: number, y: number, content: string, kind: string): string =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" class="${kind}">${escapeXml(content)}</text>`
