import { readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { zstdDecompressSync } from 'bun'
import { LabError, run } from './command.ts'

/** A kernel module, uncompressed, because xz is slow in an emulated guest. */
export interface Module {
  /** As modprobe says it: with underscores. */
  name: string
  /** Under lib/modules/RELEASE, ending in `.ko`. */
  path: string
  content: Buffer
  /** Names of the modules it needs. */
  depends: string[]
  aliases: string[]
}

/** File names and module names differ in `-` and `_` at random. */
const normalize = (name: string): string => name.replaceAll('-', '_')

const decompress = async (path: string): Promise<Buffer> => {
  if (path.endsWith('.xz')) return run(['xz', '--decompress', '--stdout', path])
  const content = await readFile(path)
  return path.endsWith('.zst') ? Buffer.from(zstdDecompressSync(content)) : content
}

/** Values of `key=` in a module's .modinfo section, which is a run of NUL-terminated strings. */
const modinfo = (content: Buffer, key: string): string[] => {
  const values: string[] = []
  const needle = `\0${key}=`
  for (let at = content.indexOf(needle); at >= 0; at = content.indexOf(needle, at + 1)) {
    const start = at + needle.length
    values.push(content.toString('latin1', start, content.indexOf(0, start)))
  }
  return values
}

/**
 * The modules named and all they depend on, each once. What is built into this kernel is left out without a word, since
 * kernels differ in that; a name the kernel does not know is an error.
 */
export const collectModules = async (folder: string, names: readonly string[]): Promise<Module[]> => {
  const files = new Map<string, string>()
  for await (const path of new Bun.Glob('kernel/**/*.ko*').scan({ cwd: folder })) {
    files.set(normalize(basename(path).replace(/\.ko(\..*)?$/, '')), path)
  }
  const builtIn = new Set(
    (await readFile(join(folder, 'modules.builtin'), 'utf8'))
      .split('\n')
      .map((line) => normalize(basename(line.trim(), '.ko'))),
  )
  const found = new Map<string, Module>()
  const pending = names.map(normalize)
  for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
    if (found.has(name) || builtIn.has(name)) continue
    const file = files.get(name)
    if (file === undefined) throw new LabError(`${name}: this kernel has no such module (${folder})`)
    const content = await decompress(join(folder, file))
    const depends = modinfo(content, 'depends').flatMap((list) => (list === '' ? [] : list.split(',').map(normalize)))
    const path = file.replace(/\.ko\..*$/, '.ko')
    found.set(name, { name, path, content, depends, aliases: modinfo(content, 'alias') })
    pending.push(...depends)
  }
  return [...found.values()].sort((a, b) => a.path.localeCompare(b.path))
}

/** modules.dep as depmod writes it: after each module all that must be loaded before it, nearest first. */
export const modulesDep = (modules: readonly Module[]): string => {
  const byName = new Map(modules.map((module) => [module.name, module]))
  const chain = (module: Module): Module[] => {
    const direct = module.depends.flatMap((name) => byName.get(name) ?? [])
    return [...new Set([...direct, ...direct.flatMap(chain)])]
  }
  // A module that several others need is loaded before all of them, so its last mention counts.
  const line = (module: Module): string => {
    const needed = chain(module).map((dependency) => dependency.path)
    return `${module.path}: ${needed.filter((path, i) => needed.lastIndexOf(path) === i).join(' ')}`.trimEnd()
  }
  return `${modules.map(line).join('\n')}\n`
}

/** modules.alias as depmod writes it: what lets `ip link add type veth` load veth. */
export const modulesAlias = (modules: readonly Module[]): string =>
  modules.flatMap((module) => module.aliases.map((alias) => `alias ${alias} ${module.name}\n`)).join('')
