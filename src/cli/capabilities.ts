/**
 * Option with which a VM manager queries the type of a back-end; all other words on the command line are ignored.
 * QEMU's docs/interop/vhost-user.rst, "Backend program conventions".
 */
export const PRINT_CAPABILITIES = '--print-capabilities'

/** `VHostUserBackendCapabilities` of QEMU's docs/interop/vhost-user.json. It defines no features for type net. */
export const capabilities = { type: 'net' } as const
