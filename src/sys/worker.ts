import { resolve } from 'node:path'
import { isCompiled } from '../base/build-info.ts'

/**
 * What `new Worker()` takes for a module of ours, named from src/: `workerUrl('dataplane/queue-worker.ts')`. The name
 * must end in `-worker.ts`: scripts/build.ts makes each such module an entry point of the executable, where it lives at
 * the same place under /$bunfs/root, whatever the working directory. `import.meta.url` would not do: with bytecode it
 * is a path on the machine that built the executable.
 */
export const workerUrl = (module: `${string}-worker.ts`): string =>
  isCompiled ? `/$bunfs/root/${module.replace(/\.ts$/, '.js')}` : resolve(import.meta.dir, '..', module)
