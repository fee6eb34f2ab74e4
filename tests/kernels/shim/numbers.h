// Conversions, with the rounding of the hardware: to nearest, ties to even.
#pragma once

INLINE float bits_to_float(unsigned x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
INLINE unsigned float_to_bits(float x) {
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}
INLINE float half_from_bits(unsigned x) {
    const unsigned sign = (x & 0x8000u) << 16, exponent = (x >> 10) & 31, mantissa = x & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return bits_to_float(sign | float_to_bits(std::ldexp(float(mantissa), -24)));
    return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
INLINE float half_to_float(unsigned short x) {
    static const std::vector<float> table = [] {
        std::vector<float> values(65536);
        for (unsigned i = 0; i < 65536; ++i) values[i] = half_from_bits(i);
        return values;
    }();
    return table[x];
}
INLINE unsigned short float_to_half(float x) {
    const unsigned bits = float_to_bits(x), sign = bits >> 16 & 0x8000u;
    const float size = std::fabs(x);
    if (!(size == size)) return 0x7fff;
    if (size >= 65520.f) return sign | 0x7c00;
    // Adding a power of two whose last place is the half's lets the host's own rounding do the work.
    const int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
    const float magic = std::ldexp(1.5f, exponent + 13);
    volatile float rounded = size + magic;
    const float value = rounded - magic;
    if (value < 6.103515625e-05f) return sign | unsigned(std::ldexp(value, 24));
    const unsigned out = float_to_bits(value);
    return sign | (((out >> 23) - 112) << 10 | (out >> 13 & 1023));
}
INLINE unsigned short float_to_bfloat(float x) {
    const unsigned bits = float_to_bits(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
INLINE unsigned pack_halves(float low, float high) {
    return float_to_half(low) | unsigned(float_to_half(high)) << 16;
}
