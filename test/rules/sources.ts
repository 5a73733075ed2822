import { readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { Glob } from 'bun'

/** The folder of the whole project. */
export const root = resolve(import.meta.dir, '../..')
/** The folder of the program. */
export const src = join(root, 'src')

/** Every file of src, as a path from there. */
export const sourceFiles: readonly string[] = [...new Glob('**/*.ts').scanSync(src)].sort()

/** The text of a file of src. */
export const sourceOf = (file: string): string => readFileSync(join(src, file), 'utf8')

/** One import of a file of src: which file, and what it names. */
export type Import = { readonly from: string; readonly specifier: string }

/** All imports of a file of src, types included. */
export const importsOf = (file: string): Import[] => {
  const pattern = /(?:from\s+|import\s*\(\s*|^import\s+)'([^']+)'/gm
  return [...sourceOf(file).matchAll(pattern)].map((match) => ({ from: file, specifier: match[1]! }))
}

/**
 * The file of src that an import names, as a path from there; it begins with `..` for a file elsewhere. Null for a
 * package.
 */
export const targetOf = ({ from, specifier }: Import): string | null =>
  specifier.startsWith('.') ? relative(src, resolve(join(src, dirname(from)), specifier)) : null
