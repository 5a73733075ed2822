import { expect, test } from 'bun:test'
import { GuestCard } from '../support/e2e-card.ts'
import { endToEnd, sharedLab } from '../support/e2e-lab.ts'
import { expectForetold, expectRefusal, type Refusal, type Starter } from '../support/e2e-refusal.ts'
import { withTun } from '../support/e2e-tun.ts'

/** A start that must be refused. */
type Case = {
  /** What makes the guest so, and what undoes that. */
  readonly given?: string
  readonly undo?: string
  readonly words: readonly string[]
  readonly starter?: Starter
  readonly refusal: Refusal
  /** `--dry-run` tells beforehand. */
  readonly foretold?: boolean
}

const cases = (list: Readonly<Record<string, Case>>): void => {
  for (const [what, { given = 'true', undo = 'true', words, starter, refusal, foretold = false }] of Object.entries(
    list,
  )) {
    test(what, async () => {
      const lab = await sharedLab()
      await lab.ok(given)
      try {
        await expectRefusal(lab, words, refusal, starter)
        if (foretold) await expectForetold(lab, words, refusal, starter)
      } finally {
        await lab.ok(undo)
      }
    })
  }
}

const tap = ['--tap', 'tap0'] as const

endToEnd('what the host lacks', () => {
  cases({
    'the module vduse': {
      given: 'rmmod vduse',
      undo: 'modprobe vduse',
      words: tap,
      refusal: { says: 'the kernel module vduse is not loaded', hints: 'modprobe vduse', code: 66 },
      foretold: true,
    },
    'the driver that the card is for': {
      given: 'rmmod virtio_vdpa',
      undo: 'modprobe virtio_vdpa',
      words: tap,
      refusal: { says: 'the driver virtio_vdpa is not loaded', hints: 'modprobe virtio_vdpa', code: 66 },
    },
    'vhost_vdpa for --bind vhost': {
      given: '! grep -q vhost_vdpa /proc/modules',
      words: [...tap, '--bind', 'vhost'],
      refusal: { says: 'the driver vhost_vdpa is not loaded', hints: 'modprobe vhost_vdpa', code: 66 },
    },
    'the module tun': {
      given: 'rmmod tun',
      undo: 'modprobe tun',
      words: tap,
      refusal: { says: '/dev/net/tun: ENOENT', hints: 'modprobe tun', code: 66 },
      foretold: true,
    },
    'the bridge': {
      words: [...tap, '--bridge', 'nosuch'],
      refusal: { says: 'bridge nosuch: no such interface', hints: 'ip link add nosuch type bridge', code: 66 },
    },
    'the network namespace': {
      words: [...tap, '--netns', 'nosuch'],
      refusal: { says: 'network namespace nosuch: ', hints: 'ip netns add nosuch', code: 1 },
    },
  })
})

endToEnd('what is not permitted', () => {
  const open = (...nodes: string[]): Pick<Case, 'given' | 'undo'> => ({
    given: `chmod 666 ${nodes.join(' ')}`,
    undo: `chmod 600 ${nodes.join(' ')}`,
  })
  const both = open('/dev/vduse/control', '/dev/net/tun')
  const nobody = { user: 'nobody' } as const

  cases({
    'the control node': {
      words: tap,
      starter: nobody,
      refusal: { says: '/dev/vduse/control: permission denied', hints: 'run as root', code: 77 },
      foretold: true,
    },
    '/dev/net/tun': {
      ...open('/dev/vduse/control'),
      words: tap,
      starter: nobody,
      refusal: { says: '/dev/net/tun: EACCES', hints: 'read and write access to /dev/net/tun', code: 77 },
    },
    'making a TAP': {
      ...both,
      words: tap,
      starter: nobody,
      refusal: { says: 'tap0: no permission to create a TAP', hints: 'CAP_NET_ADMIN', code: 77 },
    },
    "another user's TAP": {
      given: `${both.given}; ip tuntap add tap0 mode tap vnet_hdr user root`,
      undo: `${both.undo}; ip link del tap0`,
      words: tap,
      starter: nobody,
      refusal: { says: 'tap0: no permission to open it', hints: 'run as its owner', code: 77 },
    },
    'making a VDUSE device, with a TAP of its own': {
      given: `${both.given}; ip tuntap add tap0 mode tap vnet_hdr user nobody; ip link set tap0 up`,
      undo: `${both.undo}; ip link del tap0`,
      words: tap,
      starter: nobody,
      refusal: { says: 'refuses to create a VDUSE network device: EPERM', hints: 'CAP_NET_ADMIN', code: 77 },
    },
    'the network namespace of the TAP': {
      given: `${both.given}; ip netns add blue`,
      undo: `${both.undo}; ip netns del blue`,
      words: [...tap, '--netns', 'blue'],
      starter: nobody,
      refusal: { says: 'network namespace blue: EPERM', hints: 'CAP_SYS_ADMIN', code: 77 },
    },
    'a VDUSE device from a user namespace': {
      given: 'ip tuntap add tap0 mode tap vnet_hdr user root; ip link set tap0 up',
      undo: 'ip link del tap0',
      words: tap,
      starter: { prefix: ['unshare', '-U', '-r'] },
      refusal: { says: 'EPERM', hints: 'in the initial user namespace', code: 77 },
      foretold: true,
    },
    'the vDPA bus from another network namespace': {
      given: 'ip netns add blue',
      undo: 'ip netns del blue',
      words: tap,
      starter: { prefix: ['ip', 'netns', 'exec', 'blue'] },
      refusal: { says: 'from the initial network namespace only', hints: '--netns', code: 77 },
      foretold: true,
    },
  })
})

endToEnd('a TAP that does not fit', () => {
  cases({
    'is none: loopback': {
      words: ['--tap', 'lo'],
      refusal: { says: 'lo: is not a TAP', hints: '--bridge', code: 1 },
    },
    'is none: a dummy': {
      given: 'ip link add dummy5 type dummy',
      undo: 'ip link del dummy5',
      words: ['--tap', 'dummy5'],
      refusal: { says: 'dummy5: is not a TAP (it is a dummy)', hints: 'choose a name that is free', code: 1 },
    },
    'is a TUN': {
      given: 'ip tuntap add tap0 mode tun',
      undo: 'ip link del tap0',
      words: tap,
      refusal: { says: 'tap0: is a TUN (IP packets), not a TAP', hints: 'ip link del tap0', code: 1 },
      foretold: true,
    },
    'has several queues': {
      given: 'ip tuntap add tap0 mode tap multi_queue vnet_hdr',
      undo: 'ip link del tap0',
      words: tap,
      refusal: { says: 'tap0: was created with multi_queue', hints: 'ip link del tap0', code: 1 },
    },
    'cannot have this MTU': {
      words: [...tap, '--mtu', '65535'],
      refusal: { says: 'tap0: cannot set MTU 65535', hints: 'choose 68..65521', code: 1 },
    },
    'cannot do what is asked of it': {
      words: [...tap, '--no-vnet-hdr', '--features', '+guest_tso4'],
      refusal: { says: '--features +guest_tso4: tap0 cannot do it', hints: 'leave it out', code: 1 },
    },
    'is in another bridge, and keeps that and its MTU': {
      given: [
        'for bridge in br5 br6; do ip link add $bridge type bridge; done',
        'ip tuntap add tap0 mode tap vnet_hdr; ip link set tap0 master br5',
      ].join('; '),
      undo: 'for name in tap0 br5 br6; do ip link del $name; done',
      words: [...tap, '--mtu', '9000', '--bridge', 'br6'],
      refusal: { says: 'tap0: already belongs to br5, not to br6', hints: 'nomaster', code: 1 },
    },
    'is to be in a bridge that is none': {
      given: 'ip link add dummy5 type dummy',
      undo: 'ip link del dummy5',
      words: [...tap, '--bridge', 'dummy5'],
      refusal: { says: 'bridge dummy5: is not a bridge', hints: 'ip link add br0 type bridge', code: 1 },
    },
    'is to be in a network namespace that is none': {
      words: [...tap, '--netns', '/etc/passwd'],
      refusal: { says: '/etc/passwd: not a network namespace', hints: 'the file of one', code: 1 },
    },
  })

  test('is in use by another process', async () => {
    const lab = await sharedLab()
    const holder = lab.spawn([...(await withTun(lab, 'tap0', 'tap', 'vnet_hdr')), 'sleep', '1000'])
    try {
      await lab.waitFor('test -e /sys/class/net/tap0')
      await expectRefusal(lab, tap, {
        says: 'tap0: in use by another process',
        hints: 'stop that process, or choose another name',
        code: 1,
      })
    } finally {
      holder.kill()
      await holder.exited
    }
  })
})

endToEnd('a TAP descriptor that does not fit', () => {
  const fd = ['--tap-fd', '3'] as const

  cases({
    'is a file': {
      words: fd,
      starter: { redirect: '3</etc/passwd' },
      refusal: { says: '--tap-fd 3: not a TAP', hints: 'TUNSETIFF', code: 2 },
    },
    'is not open': {
      words: ['--tap-fd', '700'],
      refusal: { says: '--tap-fd 700: not an open descriptor', hints: 'close-on-exec', code: 2 },
    },
  })

  test.each([
    ['has no interface', [], [], '--tap-fd 3: not a TAP', 'TUNSETIFF', 2],
    ['is a TUN', ['tun', 'vnet_hdr'], [], 'tun0: is a TUN', 'IFF_TAP', 1],
    ['has packet information', ['pi', 'vnet_hdr'], [], 'tun0: puts packet information', 'IFF_NO_PI', 1],
    ['has a vnet header', ['tap', 'vnet_hdr'], ['--no-vnet-hdr'], 'tun0: has a vnet header', '--no-vnet-hdr', 1],
  ] as const)('%s', async (_, flags, words, says, hints, code) => {
    const lab = await sharedLab()
    const prefix = await withTun(lab, 'tun0', ...flags)
    await expectRefusal(lab, [...fd, ...words], { says, hints, code }, { prefix })
  })
})

endToEnd('what the transport or the admin API cannot have', () => {
  const tcp = [...tap, '--admin', '127.0.0.1:8080', '--admin-token-file', '/tmp/token'] as const
  const token = 'umask 077; head -c 32 /dev/urandom | xxd -p -c 64 > /tmp/token'

  cases({
    'a control queue over VDUSE': {
      words: [...tap, '--features', '+ctrl_vq'],
      refusal: {
        says: '--features +ctrl_vq: VDUSE carries split rings only, and no control queue',
        hints: '--socket-path',
        code: 1,
      },
    },
    'a file where the socket goes': {
      words: [...tap, '--admin', 'unix:/etc/passwd'],
      refusal: { says: '--admin: /etc/passwd exists and is no socket', hints: 'another path', code: 1 },
    },
    'a folder that is open to others': {
      given: 'mkdir -m 0777 /run/open',
      undo: 'rmdir /run/open',
      words: [...tap, '--admin', 'unix:/run/open/x.sock'],
      refusal: { says: '--admin: others can replace files in /run/open', hints: 'chmod 700 /run/open', code: 2 },
    },
    'a folder that cannot be written': {
      given: 'mkdir /run/ro; mount -t tmpfs -o ro none /run/ro',
      undo: 'umount /run/ro; rmdir /run/ro',
      words: [...tap, '--admin', 'unix:/run/ro/x.sock'],
      refusal: { says: '--admin: /run/ro/x.sock: EROFS', hints: '--admin off', code: 77 },
    },
    'no token': {
      words: tcp,
      refusal: { says: '--admin-token-file /tmp/token: ENOENT', hints: 'umask 077', code: 2 },
    },
    'a token that others may read': {
      given: `${token}; chmod 644 /tmp/token`,
      undo: 'rm /tmp/token',
      words: tcp,
      refusal: { says: '--admin-token-file /tmp/token: others may read it', hints: 'chmod 600 /tmp/token', code: 2 },
    },
    'a port that is taken': {
      given: `${token}; httpd -p 127.0.0.1:8080 -h /tmp`,
      undo: 'killall httpd; rm /tmp/token',
      words: tcp,
      refusal: { says: '--admin: 127.0.0.1:8080: EADDRINUSE', hints: 'another port', code: 1 },
    },
    'no folder for the process id': {
      words: [...tap, '--pid', '/nosuch/pid'],
      refusal: { says: '--pid /nosuch/pid: ENOENT', hints: 'make the folder first', code: 1 },
    },
  })
})

endToEnd('what a running card has', () => {
  test('is refused to another one, and the first goes on', async () => {
    const lab = await sharedLab()
    await using card = await GuestCard.start(lab, { tap: 'tap0' })
    const netdev = await card.netdev()
    await expectRefusal(lab, ['--tap', 'tap1', '--name', 'tap0', '--admin', 'off'], {
      says: '/dev/vduse/tap0 is busy: another process serves this device',
      hints: '--name',
      code: 1,
    })
    await expectRefusal(lab, ['--tap', 'tap0', '--name', 'net1'], {
      says: 'tap0: in use by another process',
      hints: '--tap',
      code: 1,
    })
    await expectRefusal(lab, ['--tap', 'tap1', '--admin', `unix:${card.socket}`], {
      says: `--admin: ${card.socket} is served by another process`,
      hints: '--name',
      code: 1,
    })
    // The driver's interface is where packets come from; it is not a TAP to put them into.
    await expectRefusal(lab, ['--tap', netdev], {
      says: `${netdev}: is not a TAP`,
      hints: 'choose a name that is free',
      code: 1,
    })
    await card.wire()
    await card.passes()
    expect(await card.ping()).toEqual({ sent: 20, received: 20 })
    expect(await card.device()).toMatchObject({ attached: true, resets: 0 })
  })
})
