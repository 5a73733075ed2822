import { describe, expect, test } from 'bun:test'
import { EventFd } from '../../../src/sys/eventfd.ts'
import { native } from '../../../src/sys/native.ts'
import { POLLIN, POLLNVAL, POLLOUT, Poller } from '../../../src/sys/poller.ts'

describe('Poller', () => {
  test('finds what is ready, and forgets it with the next wait', () => {
    using a = new EventFd()
    using b = new EventFd()
    const poller = new Poller(2)
    const slotA = poller.add(a.fd, POLLIN)
    const slotB = poller.add(b.fd, POLLIN)
    expect(poller.wait(0)).toBe(0)
    b.signal()
    expect(poller.wait(-1)).toBe(1)
    expect([poller.ready(slotA), poller.ready(slotB)]).toEqual([0, POLLIN])
    b.drain()
    expect(poller.wait(1)).toBe(0)
    expect(poller.ready(slotB)).toBe(0)
  })

  test('changes events and descriptors in place', () => {
    using a = new EventFd()
    const poller = new Poller(1)
    const slot = poller.add(-1, POLLIN)
    expect(poller.wait(0)).toBe(0)
    poller.setFd(slot, a.fd)
    poller.setEvents(slot, POLLOUT)
    expect(poller.wait(0)).toBe(1)
    expect(poller.ready(slot)).toBe(POLLOUT)
    poller.setEvents(slot, 0)
    expect(poller.wait(0)).toBe(0)
    poller.setEvents(slot, POLLOUT)
    poller.wait(0)
    poller.setFd(slot, -1)
    expect(poller.ready(slot)).toBe(0)
    expect(poller.wait(0)).toBe(0)
  })

  test('uses a removed slot again, and takes no more than its capacity', () => {
    using a = new EventFd()
    a.signal()
    const poller = new Poller(2)
    const first = poller.add(a.fd, POLLIN)
    const second = poller.add(a.fd, POLLIN)
    expect(() => poller.add(a.fd, POLLIN)).toThrow('full')
    expect(poller.wait(0)).toBe(2)
    poller.remove(second)
    expect(poller.wait(0)).toBe(1)
    expect(() => poller.setEvents(second, POLLIN)).toThrow('slot')
    poller.remove(first)
    expect(poller.wait(0)).toBe(0)
    expect(poller.add(a.fd, POLLIN)).toBe(first)
    expect(poller.add(a.fd, POLLIN)).toBe(second)
    expect(poller.wait(0)).toBe(2)
  })

  test('tells a closed descriptor', () => {
    const poller = new Poller(1)
    const closed = new EventFd()
    const slot = poller.add(closed.fd, POLLIN)
    closed[Symbol.dispose]()
    expect(poller.wait(-1)).toBe(1)
    expect(poller.ready(slot)).toBe(POLLNVAL)
  })
})

describe('EventFd', () => {
  test('a full counter is still a signal', () => {
    using event = new EventFd()
    // One less than the most that the counter holds: eventfd(2).
    const almostFull = new BigUint64Array([0xfffffffffffffffen])
    expect(native.vn_write(event.fd, almostFull, 8)).toBe(8)
    event.signal()
    const poller = new Poller(1)
    const slot = poller.add(event.fd, POLLIN)
    expect(poller.wait(0)).toBe(1)
    expect(poller.ready(slot)).toBe(POLLIN)
    event.drain()
    event.drain()
    expect(poller.wait(0)).toBe(0)
  })

  test('throws when somebody else has closed it', () => {
    const event = new EventFd()
    native.vn_close(event.fd)
    expect(() => event.signal()).toThrow('eventfd write: EBADF')
    expect(() => event.drain()).toThrow('eventfd read: EBADF')
    expect(() => event[Symbol.dispose]()).toThrow('closed elsewhere')
  })
})
