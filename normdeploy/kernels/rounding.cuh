// Conversions by integer arithmetic, for GPUs (and CPUs) that have no instruction for them; to nearest even.

__device__ __forceinline__ unsigned short rounded_bfloat16(float value) {
    const unsigned bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// fp8 e4m3 (OCP 8-bit floating point, 2023): saturates to 448, has no infinity; 0x7f is NaN.
__device__ __forceinline__ unsigned char rounded_e4m3(float value) {
    const unsigned bits = bits_of(value), sign = (bits >> 24) & 0x80u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7f;
    if (size >= 0x43e00000u) return (unsigned char)(sign | 0x7eu);  // 448
    if (size < 0x3c800000u)  // below 2^-6 the steps are 2^-9 wide: adding 2^14 rounds to them
        return (unsigned char)(sign | (bits_of(float_of(size) + 16384.0f) & 0xffu));
    const unsigned rounded = size + 0x7ffffu + ((size >> 20) & 1u);
    return (unsigned char)(sign | ((rounded >> 20) - ((127u - 7u) << 3)));
}
