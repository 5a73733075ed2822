/** True if the index passed `event` on its way from `prev` to `next`. Wrap-safe. VIRTIO 1.2 §2.7.10. */
export const needEvent = (event: number, next: number, prev: number): boolean =>
  ((next - event - 1) & 0xffff) < ((next - prev) & 0xffff)
