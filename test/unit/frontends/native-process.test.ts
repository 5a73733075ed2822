import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { NativeProcess } from '../../../scripts/frontends/native-process.ts'
import { NetworkNamespace } from '../../../scripts/frontends/network-namespace.ts'
import { noRealTaps } from '../../support/network-namespace.ts'

describe.skipIf(noRealTaps !== null)('a program that ends before it says what is waited for', () => {
  let namespace: NetworkNamespace
  beforeAll(() => {
    namespace = new NetworkNamespace()
  })
  afterAll(() => namespace?.[Symbol.dispose]())

  const failure = async (script: string, family: boolean): Promise<string> => {
    const argv = ['sh', '-c', `ulimit -c 0; ${script}`]
    await using process = new NativeProcess({ name: 'generator', netns: namespace.name, argv, family })
    return await process.line(/ready/).then(
      () => 'it said so',
      (error: Error) => error.message,
    )
  }

  test.each([false, true])('a crash is said as a crash, with the last lines (in a family: %p)', async (family) => {
    // In a family the program is process 1, which ignores signals of its own.
    const words = await failure("echo stack smashing detected; sh -c 'kill -ABRT $$'; exit $?", family)
    expect(words).toStartWith('generator crashed (SIGABRT)')
    expect(words).toContain('stack smashing detected')
  })

  test('an exit code is said as one', async () => {
    expect(await failure('echo no such device; exit 3', false)).toMatch(
      /^generator ended with exit code 3.*such device/s,
    )
  })
})
