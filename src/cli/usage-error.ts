import type { CommanderError } from 'commander'
import { EXIT, UserError } from '../base/errors.ts'
import { shown } from './shown.ts'

const SEE_HELP = 'see vduse-net --help'

/**
 * Converts an error of commander, like `error: option '--mtu <bytes>' argument missing`, to a UserError, like `--mtu:
 * needs a value`, with a hint.
 */
export const usageError = (error: CommanderError, words: readonly string[]): UserError => {
  const [first = '', ...rest] = error.message.replace(/^error: /, '').split('\n')
  const quoted = /'([^']*)'/.exec(first)?.[1] ?? ''
  const subject = quoted.split(/[ ,]+/).findLast((word) => word.startsWith('-')) ?? quoted
  const suggestion = /\(Did you mean (?:one of )?(.+?)\?\)/.exec(rest.join(' '))?.[1]
  const hint = suggestion === undefined ? SEE_HELP : `did you mean ${suggestion}? Or ${SEE_HELP}`
  switch (error.code) {
    case 'commander.unknownOption':
      return new UserError(`${subject}: unknown option`, hint, EXIT.usage)
    case 'commander.optionMissingArgument':
      return new UserError(`${subject}: needs a value`, `write ${quoted.replace(/^-\w, /, '')}`, EXIT.usage)
    case 'commander.excessArguments':
      return new UserError('too many arguments', SEE_HELP, EXIT.usage)
    case 'commander.missingArgument':
      return new UserError(`${quoted}: missing`, `name it, like vduse-net completion bash; ${SEE_HELP}`, EXIT.usage)
    case 'commander.invalidArgument': {
      const choices = /Allowed choices are (.+)\./.exec(first)?.[1]
      const given = /argument '([^']*)' is invalid/.exec(first)?.[1]
      return new UserError(
        `${given === undefined ? quoted : `${subject} ${shown(given)}`}: not known`,
        choices === undefined ? SEE_HELP : `give one of ${choices}`,
        EXIT.usage,
      )
    }
    // `help WORD` with an unknown WORD.
    case 'commander.help': {
      const word = words[words.indexOf('help') + 1] ?? ''
      return new UserError(
        `help ${shown(word)}: no such command`,
        `commands are run, doctor and completion; ${SEE_HELP}`,
        EXIT.usage,
      )
    }
    default:
      return new UserError(first, hint, EXIT.usage)
  }
}
