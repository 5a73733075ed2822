export fn vn_abi() [*:0]const u8 {
    return "{}";
}
