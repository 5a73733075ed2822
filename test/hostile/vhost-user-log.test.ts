/**
 * What a front-end, or whoever comes and goes, can make the card write into its log: a bounded number of lines, and all
 * counted.
 */

import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { until } from '../../scripts/frontends/native-process.ts'
import { POLLIN } from '../../src/abi/linux.ts'
import {
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_NUM,
} from '../../src/abi/vhost-user.ts'
import { bit } from '../support/bits.ts'
import { noRealTaps } from '../support/network-namespace.ts'
import { TEST_MS } from '../support/patience.ts'
import { Backend } from '../support/vhost-user-backend.ts'
import { bodyOf, Frontend, poll } from '../support/vhost-user-client.ts'
import { Traffic } from '../support/vhost-user-traffic.ts'

setDefaultTimeout(TEST_MS)

const WITH_STATUS = bit(VHOST_USER_PROTOCOL_F_REPLY_ACK) | bit(VHOST_USER_PROTOCOL_F_STATUS)

const messages = (backend: Backend): string[] =>
  backend.log
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => (JSON.parse(line) as { message: string }).message)

/** Lines that match, and those that their notes say were left out. */
const toldOf = (backend: Backend, pattern: RegExp): number =>
  messages(backend)
    .filter((line) => pattern.test(line))
    .reduce((sum, line) => sum + 1 + Number(/\((\d+) more lines? of this kind left out\)$/.exec(line)?.[1] ?? 0), 0)

const leftOut = async (backend: Backend): Promise<number> =>
  ((await backend.ask('/v1/stats')) as { logLines: { leftOut: number } }).logLines.leftOut

/** A line of another kind, caused by the host, is written as ever. */
const expectRareLine = async (backend: Backend): Promise<void> => {
  const from = backend.log.length
  backend.namespace.ip('link set tap0 down')
  await backend.logged(/tap0 is down/, from)
  backend.namespace.ip('link set tap0 up')
  await backend.logged(/tap0 is up/, from)
}

describe.skipIf(noRealTaps !== null)('the log of a card', () => {
  test('a driver that resets the device without end: few lines, the others counted and told', async () => {
    await using backend = await Backend.start()
    using frontend = Frontend.start(backend.socketPath, { protocolFeatures: WITH_STATUS })
    const before = messages(backend).length
    const resets = 10_000
    for (let round = 0; round < resets; round++) {
      for (const status of [1n, 0n]) frontend.client.send(VHOST_USER_SET_STATUS, bodyOf(status))
      if (round % 100 === 0) frontend.settle()
    }
    frontend.settle()
    await expectRareLine(backend)
    expect(await leftOut(backend)).toBeGreaterThan(resets / 2)
    await until('the log to say what it lacks', () => toldOf(backend, /driver has reset the device/) >= resets)
    expect(messages(backend).length - before).toBeLessThan(60)
  })

  test('requests that are refused without end', async () => {
    await using backend = await Backend.start()
    using frontend = Frontend.start(backend.socketPath)
    const before = messages(backend).length
    const requests = 5_000
    for (let round = 0; round < requests; round++) {
      // A size that is no power of two, another one each time.
      expect(frontend.client.carriesOut(VHOST_USER_SET_VRING_NUM, bodyOf(0, 3 + 2 * round))).toBeFalse()
    }
    new Traffic(backend).pass(frontend)
    await expectRareLine(backend)
    await until('the log to say what it lacks', () => toldOf(backend, /SET_VRING_NUM refused/) >= requests)
    expect(messages(backend).length - before).toBeLessThan(60)
  })

  test('front-ends that break their ring, are cut off and come back at once', async () => {
    await using backend = await Backend.start()
    const before = messages(backend).length
    const rounds = 60
    for (let round = 0; round < rounds; round++) {
      using frontend = Frontend.start(backend.socketPath)
      frontend.tx.driver.availIdx = 1000
      frontend.tx.kick.signal()
      expect(poll(frontend.tx.err.fd, POLLIN, 60_000)).toBe(POLLIN)
    }
    new Traffic(backend).serveNext()
    await expectRareLine(backend)
    await until('the log to say what it lacks', () => toldOf(backend, /queue 1 quarantined/) >= rounds)
    // Each comes, sets up, breaks, takes the link down, goes, brings it up: kinds of their own.
    expect(messages(backend).length - before).toBeLessThan(130)
  })
})
