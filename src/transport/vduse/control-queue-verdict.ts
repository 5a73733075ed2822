/** Whether the kernel accepts VDUSE network devices with a control queue, only those without one, or none at all. */
export type ControlQueueVerdict = 'accepted' | 'refused' | 'no network devices'

/** What each verdict means for a card, as text. VIRTIO 1.2 §5.1.5: without a control queue a driver uses one pair. */
export const controlQueueMeaning: Readonly<Record<ControlQueueVerdict, string>> = {
  refused: 'refused by this kernel: one queue pair',
  accepted: 'accepted by this kernel, and not used over VDUSE yet: one queue pair',
  'no network devices': 'the kernel refuses all network devices',
}
