import { expect, test } from 'bun:test'
import { qemuCommand } from '../../../src/card/qemu-command.ts'

const card = { path: '/run/vn.sock', isServer: false, mac: '02:00:00:00:00:05', mtu: 1500, pairs: 1, queueSize: 1024 }

test('one pair, on a socket that we listen on', () => {
  expect(qemuCommand(card)).toBe(
    [
      'qemu-system-x86_64 -accel kvm -accel tcg -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on',
      '-machine q35,memory-backend=mem -chardev socket,id=vn,path=/run/vn.sock,reconnect=1',
      '-netdev vhost-user,id=net0,chardev=vn',
      '-device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:05,rx_queue_size=1024,tx_queue_size=1024',
    ].join(' '),
  )
})

test('several pairs have vectors for their queues, the control queue and the configuration', () => {
  const command = qemuCommand({ ...card, pairs: 4 })
  expect(command).toContain('chardev=vn,queues=4 ')
  expect(command).toContain('mq=on,vectors=10,')
})

test('a QEMU that listens, another MTU, rings as QEMU has them', () => {
  const command = qemuCommand({ ...card, isServer: true, mtu: 9000, queueSize: 256 })
  expect(command).toContain('path=/run/vn.sock,server=on,wait=off ')
  expect(command).toEndWith('mac=02:00:00:00:00:05,host_mtu=9000')
})

test('a path that QEMU or a shell would take apart', () => {
  expect(qemuCommand({ ...card, path: "/run/a b,c'd" })).toContain(
    "-chardev 'socket,id=vn,path=/run/a b,,c'\\''d,reconnect=1' ",
  )
})

test('the name of an abstract socket', () => {
  expect(qemuCommand({ ...card, path: '@vm1' })).toContain('-chardev socket,id=vn,path=vm1,abstract=on,reconnect=1 ')
  expect(qemuCommand({ ...card, path: '@a,b', isServer: true })).toContain('path=a,,b,abstract=on,server=on,wait=off ')
})

test('none for rings that are smaller than any of QEMU', () => {
  expect(qemuCommand({ ...card, queueSize: 128 })).toBeNull()
})
