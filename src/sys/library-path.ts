import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { UserError } from '../base/errors.ts'

declare const VDUSE_NET_BUILD_ARCH: 'x64' | 'arm64'

/**
 * The path of the native library: a file inside the compiled executable, or build/native/ when run from sources. The
 * bundler evaluates the constant, so an executable contains the library of its own architecture only.
 */
export const libraryPath = (): string => {
  if (typeof VDUSE_NET_BUILD_ARCH !== 'undefined') {
    return VDUSE_NET_BUILD_ARCH === 'arm64'
      ? require('../../build/native/vduse-net-arm64.so')
      : require('../../build/native/vduse-net-x64.so')
  }
  const path = resolve(import.meta.dir, `../../build/native/vduse-net-${process.arch}.so`)
  if (!existsSync(path)) {
    throw new UserError(`the native library is not built: ${path}`, 'run `npm run build`')
  }
  return path
}
