import { buildInfo } from './base/build-info.ts'
import { native } from './sys/native.ts'

native.vn_guard_install()
console.log(`vduse-net ${buildInfo.version} (${buildInfo.revision})`)
