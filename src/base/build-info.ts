import { version } from '../../package.json' with { type: 'json' }

/** Defined by scripts/build.ts in the executable (`--define`); undefined when run from sources. */
declare const VDUSE_NET_BUILD_ARCH: 'x64' | 'arm64'
declare const VDUSE_NET_BUILD_REVISION: string

/** True in the compiled executable, false for `bun src/main.ts` and tests. */
export const isCompiled = typeof VDUSE_NET_BUILD_ARCH !== 'undefined'

/** The version of package.json, and `git describe` of the build or `dev`. */
export const buildInfo = {
  version,
  revision: typeof VDUSE_NET_BUILD_REVISION !== 'undefined' ? VDUSE_NET_BUILD_REVISION : 'dev',
} as const
