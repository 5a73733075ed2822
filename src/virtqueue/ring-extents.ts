/** Bytes of the three parts of a split ring with `size` entries, event fields included. VIRTIO 1.2 §2.7. */
export const ringExtents = (
  size: number,
): { readonly desc: number; readonly avail: number; readonly used: number } => ({
  desc: 16 * size,
  avail: 6 + 2 * size,
  used: 6 + 8 * size,
})
