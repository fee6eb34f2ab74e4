// Loads and stores of eight neighbouring numbers of a caller's array, of any type. Each thread moves sixteen or thirty-two bytes at once,
// so that enough bytes are in flight to hide the latency of device memory. The numbers stay in registers in the type of the array, and are
// converted to floats only when they are used.
#pragma once
#include "common.cuh"

struct Eight { uint32 at[8]; };  // eight floats; or four words of two halves each, and four unused words
struct alignas(16) Word { uint32 at[4]; };

enum Type { FLOAT32, FLOAT16, BFLOAT16 };
DEVICE int bytes_of(int type) { return type == FLOAT32 ? 4 : 2; }

// The address of one matrix of the caller's array in a slot of the table.
DEVICE char* place_of(const Entry& e, const uint64* table, int slot, int type) {
    return reinterpret_cast<char*>(table[slot]) + e.offset * bytes_of(type);
}

// Whether eight numbers that begin at a multiple of eight columns may always be read as whole words of sixteen bytes. For floats that takes
// an aligned array whose rows have a multiple of four columns.
DEVICE bool whole_words(const void* x, int cols, int type) { return (((uint64)x | (uint64)cols * bytes_of(type)) & 15) == 0; }

DEVICE float float_at(const char* x, int type, long long place) {
    if (type == FLOAT32) return reinterpret_cast<const float*>(x)[place];
    const uint16 bits = reinterpret_cast<const uint16*>(x)[place];
    return type == FLOAT16 ? half_to_float(bits) : bits_to_float(uint32(bits) << 16);
}

// Loads `count` numbers from `place` on; the rest of the eight are zero.
DEVICE void load_eight(Eight& eight, const char* x, int type, long long place, int count, bool whole) {
    if (count >= 8 && whole) {
        const Word* words = reinterpret_cast<const Word*>(x + place * bytes_of(type));
        const Word first = words[0], second = type == FLOAT32 ? words[1] : first;
#pragma unroll
        for (int n = 0; n < 4; ++n) eight.at[n] = first.at[n], eight.at[4 + n] = second.at[n];
        return;
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) eight.at[n] = 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        if (n >= count) break;
        if (type == FLOAT32) eight.at[n] = reinterpret_cast<const uint32*>(x)[place + n];
        else eight.at[n / 2] |= uint32(reinterpret_cast<const uint16*>(x)[place + n]) << 16 * (n & 1);
    }
}

DEVICE void floats_of(float (&values)[8], const Eight& eight, int type) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        const uint32 bits = eight.at[n / 2] >> 16 * (n & 1) & 0xffff;
        if (type == FLOAT32) values[n] = bits_to_float(eight.at[n]);
        else values[n] = type == FLOAT16 ? half_to_float(uint16(bits)) : bits_to_float(bits << 16);
    }
}

DEVICE uint32 pack_bfloats(float low, float high) { return float_to_bfloat(low) | uint32(float_to_bfloat(high)) << 16; }

DEVICE void store_eight(const float (&values)[8], char* x, int type, long long place) {
    Word* words = reinterpret_cast<Word*>(x + place * bytes_of(type));
    if (type == FLOAT32) {
#pragma unroll
        for (int n = 0; n < 8; n += 4)
            words[n / 4] = {
                float_to_bits(values[n]), float_to_bits(values[n + 1]), float_to_bits(values[n + 2]), float_to_bits(values[n + 3])
            };
    } else {
        Word word;
#pragma unroll
        for (int n = 0; n < 8; n += 2)
            word.at[n / 2] = type == FLOAT16 ? pack_halves(values[n], values[n + 1]) : pack_bfloats(values[n], values[n + 1]);
        *words = word;
    }
}
DEVICE void store_one(float value, char* x, int type, long long place) {
    if (type == FLOAT32) reinterpret_cast<float*>(x)[place] = value;
    else reinterpret_cast<uint16*>(x)[place] = type == FLOAT16 ? float_to_half(value) : float_to_bfloat(value);
}

// Stores value(n) for n < count into the result from `place` on.
template <class Value> DEVICE void finish_eight(Value value, char* result, int type, long long place, int count, bool whole) {
    if (count >= 8 && whole) {
        float values[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) values[n] = value(n);
        store_eight(values, result, type, place);
    } else {
#pragma unroll 1
        for (int n = 0; n < 8 && n < count; ++n) store_one(value(n), result, type, place + n);
    }
}

// Stores eight values as halves. The second of two planes holds the rounding errors of the first. `at(plane)` gives the address.
template <int planes, class Place> DEVICE void store_planes(float (&values)[8], Place at) {
#pragma unroll
    for (int plane = 0; plane < planes; ++plane) {
        Word word;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            word.at[n] = pack_halves(values[2 * n], values[2 * n + 1]);
            values[2 * n] -= half_to_float(uint16(word.at[n])), values[2 * n + 1] -= half_to_float(uint16(word.at[n] >> 16));
        }
        *at(plane) = word;
    }
}

// Multiplies by 2^-exponent, in two factors, because the power itself may be out of the range of a float.
struct Shift {
    float first, second;
    DEVICE explicit Shift(int exponent) : first(power(-(exponent >> 1))), second(power((exponent >> 1) - exponent)) {}
    DEVICE static float power(int exponent) { return bits_to_float(uint32(exponent + 127) << 23); }
    DEVICE float operator()(float x) const { return x * first * second; }
};
