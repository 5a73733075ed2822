/** What an action throws that must fail. */
import { UserError } from '../../src/base/errors.ts'

/** The error of class `kind` that the action throws. Throws any other error on, and one of its own if there is none. */
export const thrown = <E extends Error>(kind: abstract new (...args: never[]) => E, action: () => unknown): E => {
  try {
    action()
  } catch (error) {
    if (error instanceof kind) return error
    throw error
  }
  throw new Error('nothing was refused')
}

/** What the user reads when the action fails. */
export const refusal = (action: () => unknown): UserError => thrown(UserError, action)
