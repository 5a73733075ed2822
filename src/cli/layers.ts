import { EXIT, UserError } from '../base/errors.ts'
import { closest } from './closest.ts'
import { type SettingKey, type SettingValues, settingKeys, settings } from './settings.ts'
import { shown } from './shown.ts'

/** Settings of one source, as text. An earlier source in the list takes precedence. */
export interface Layer {
  /** A setting of this source as the user has written it: `--mtu 5`, `VDUSE_NET_MTU=5`. */
  spell(key: SettingKey, text: string): string
  readonly texts: Partial<Readonly<Record<SettingKey, string>>>
}

const longFlag = (key: SettingKey): string => {
  const flags = settings[key].flags
  return (flags[0] ?? '').replace(/^-\w, /, '').split(' ')[0] ?? ''
}

const isSwitch = (key: SettingKey): boolean => !(settings[key].flags[0] ?? '').includes('<')

/** Settings of the command line. */
export const flagLayer = (texts: Layer['texts']): Layer => ({
  texts,
  spell: (key, text) => (isSwitch(key) ? longFlag(key) : `${longFlag(key)} ${shown(text)}`),
})

/**
 * Settings of the environment. An empty variable counts as unset: compose files and units produce one from an omitted
 * value.
 */
export const environmentLayer = (env: Readonly<Record<string, string | undefined>>): Layer => {
  const texts: Partial<Record<SettingKey, string>> = {}
  for (const key of settingKeys) {
    const text = env[settings[key].env]
    if (text !== undefined && text !== '') texts[key] = text
  }
  return { texts, spell: (key, text) => `${settings[key].env}=${shown(text)}` }
}

/** A warning for each unknown variable that begins with VDUSE_NET_. */
export const unknownVariables = (env: Readonly<Record<string, string | undefined>>): string[] => {
  const known = new Set(settingKeys.map((key) => settings[key].env))
  return Object.keys(env)
    .filter((name) => name.startsWith('VDUSE_NET_') && !known.has(name))
    .map((name) => {
      const near = closest(name, known)
      return `${shown(name)}: unknown variable, ignored${near === null ? '' : `; did you mean ${near}?`}`
    })
}

/** The text of a setting from the first source that has it, and as the user has written it. */
export const textOf = (layers: readonly Layer[], key: SettingKey): { text: string; spelling: string } | null => {
  for (const layer of layers) {
    const text = layer.texts[key]
    if (text !== undefined) return { text, spelling: layer.spell(key, text) }
  }
  return null
}

/**
 * The validated values of all settings that a source has set.
 * @throws {UserError} for the first text that its schema refuses.
 */
export const resolveLayers = (layers: readonly Layer[]): SettingValues => {
  const values: Partial<Record<SettingKey, unknown>> = {}
  for (const key of settingKeys) {
    const found = textOf(layers, key)
    if (found === null) continue
    const result = settings[key].schema.safeParse(found.text)
    if (!result.success) {
      const why = result.error.issues[0]?.message ?? 'refused'
      throw new UserError(`${found.spelling}: ${why}`, settings[key].hint, EXIT.usage)
    }
    values[key] = result.data
  }
  return values as SettingValues
}
