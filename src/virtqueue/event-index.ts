/** Has `next` moved past `event` since `prev`? Wrap-safe. VIRTIO 1.2 §2.7.10. */
export const needEvent = (event: number, next: number, prev: number): boolean =>
  ((next - event - 1) & 0xffff) < ((next - prev) & 0xffff)
