import { version } from '../../package.json' with { type: 'json' }

/**
 * What scripts/build.ts knew when it made the executable (`--define`). Run from sources there is none of it.
 */
declare const VDUSE_NET_BUILD_ARCH: 'x64' | 'arm64'
declare const VDUSE_NET_BUILD_REVISION: string

/** Is this the compiled executable, and not `bun src/main.ts` or a test? */
export const isCompiled = typeof VDUSE_NET_BUILD_ARCH !== 'undefined'

/** The version of package.json, and `git describe` of the build or `dev`. */
export const buildInfo = {
  version,
  revision: typeof VDUSE_NET_BUILD_REVISION !== 'undefined' ? VDUSE_NET_BUILD_REVISION : 'dev',
} as const
