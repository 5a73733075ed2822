import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs'
import { EXIT, UserError } from '../base/errors.ts'

/** Least strength of a token: that of `openssl rand -hex 32`. */
const TOKEN_MIN_BITS = 256
const FILE_MAX_BYTES = 4096

const hint = 'make one: (umask 077; openssl rand -hex 32 > FILE)'

/** Upper bound of the bits in a token's text: 4 in a character if all are hexadecimal, else 6 of base64. */
const bitsOf = (token: string): number => {
  const characters = token.replace(/=+$/, '').length
  return /^[0-9a-fA-F]+$/.test(token) ? characters * 4 : characters * 6
}

/**
 * Reads the bearer token of a file that only its owner can read.
 * @throws {UserError} if the file is missing, open to others, or its token too short.
 */
export const readToken = (path: string): string => {
  let fd: number
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable'
    throw new UserError(`--admin-token-file ${path}: ${code}`, hint, code === 'EACCES' ? EXIT.permission : EXIT.usage)
  }
  try {
    const status = fstatSync(fd)
    if (!status.isFile()) throw new UserError(`--admin-token-file ${path}: not a file`, hint, EXIT.usage)
    if ((status.mode & 0o077) !== 0)
      throw new UserError(
        `--admin-token-file ${path}: others may read it (mode ${(status.mode & 0o777).toString(8)})`,
        `chmod 600 ${path}`,
        EXIT.usage,
      )
    if (status.size > FILE_MAX_BYTES)
      throw new UserError(`--admin-token-file ${path}: larger than ${FILE_MAX_BYTES} bytes`, hint, EXIT.usage)
    const token = readFileSync(fd, 'utf8').trim()
    if (!/^[A-Za-z0-9+/_-]+=*$/.test(token))
      throw new UserError(`--admin-token-file ${path}: neither hexadecimal nor base64`, hint, EXIT.usage)
    if (bitsOf(token) < TOKEN_MIN_BITS)
      throw new UserError(
        `--admin-token-file ${path}: a token of ${bitsOf(token)} bits, fewer than ${TOKEN_MIN_BITS}`,
        hint,
        EXIT.usage,
      )
    return token
  } finally {
    closeSync(fd)
  }
}
