/**
 * Bytes of the three areas of a ring with `size` entries. Split: descriptor table, avail ring and used ring with their
 * event fields. Packed: descriptor ring, driver's and device's event suppression structure. VIRTIO 1.2 §2.7, §2.8.10.1.
 */
export const ringExtents = (
  size: number,
  packed: boolean,
): { readonly desc: number; readonly avail: number; readonly used: number } => ({
  desc: 16 * size,
  avail: packed ? 4 : 6 + 2 * size,
  used: packed ? 4 : 6 + 8 * size,
})
