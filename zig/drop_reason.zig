//! Why a packet was dropped: the index into `vn_io.drops`. The same list, in the same order, as src/abi/drop-reason.ts.

pub const DropReason = enum(u8) {
    // TypeScript, while it walks a chain.
    chain_next_out_of_range,
    chain_loop,
    chain_too_long,
    chain_too_many_segments,
    chain_empty,
    chain_address_unmapped,
    chain_wrong_direction,
    indirect_not_negotiated,
    indirect_malformed,
    // Zig, transmit: the virtio-net header or the frame.
    header_short,
    frame_too_short,
    frame_too_long,
    gso_type_unknown,
    gso_not_negotiated,
    gso_without_csum,
    gso_size_invalid,
    gso_protocol_mismatch,
    csum_not_negotiated,
    csum_out_of_range,
    // Zig, receive.
    rx_buffer_too_small,
    rx_too_long_for_ring,
    rx_gso_not_negotiated,
    rx_malformed,
    // Errors of the TAP.
    tap_down,
    tap_gone,
    tap_no_memory,
    tap_rejected,
    // State of the device.
    link_down,
    queue_disabled,
    // Received while no driver ran, or for one that has gone.
    rx_no_driver,
    // The driver's receive filter.
    rx_filtered,
};
