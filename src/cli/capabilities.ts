/**
 * By this a program that manages VMs asks what kind of back-end it has before it: whatever else stands on the command
 * line is ignored. QEMU's docs/interop/vhost-user.rst, "Backend program conventions".
 */
export const PRINT_CAPABILITIES = '--print-capabilities'

/**
 * `VHostUserBackendCapabilities` of QEMU's docs/interop/vhost-user.json, in which a back-end of type net has no
 * features to tell.
 */
export const capabilities = { type: 'net' } as const
