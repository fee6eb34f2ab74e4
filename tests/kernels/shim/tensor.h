// Tensor-core instructions, with the fragment layouts of the PTX manual.
#pragma once

INLINE unsigned shared_address(const void* pointer) {
    const long long offset = static_cast<const unsigned char*>(pointer) - shim::block->shared;
    if (offset < 0 || offset > (long long)shim::SHARED_BYTES) shim::fail("not a shared address");
    return unsigned(offset);
}

namespace shim {
struct Loaded { unsigned address; unsigned r[4]; };
inline unsigned short half_at(unsigned address) {
    unsigned short x;
    memcpy(&x, at(address, 2, 2), 2);
    return x;
}
inline void load(unsigned (&r)[4], unsigned address, bool transposed) {
    Loaded argument{address, {}};
    at(address, 16, 16);
    with_lanes(argument, [transposed](Loaded** lanes) {
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                unsigned word = 0;
                for (int j = 0; j < 2; ++j) {
                    int row = lane / 4, column = 2 * (lane % 4) + j;
                    if (transposed) std::swap(row, column);
                    word |= unsigned(half_at(lanes[8 * i + row]->address + 2 * column)) << 16 * j;
                }
                lanes[lane]->r[i] = word;
            }
    });
    memcpy(r, argument.r, sizeof argument.r);
}
inline float low(unsigned x) { return half_to_float(x & 0xffff); }
inline float high(unsigned x) { return half_to_float(x >> 16); }
}  // namespace shim

INLINE void load_matrices(unsigned (&r)[4], unsigned address) { shim::load(r, address, false); }
INLINE void load_matrices_transposed(unsigned (&r)[4], unsigned address) { shim::load(r, address, true); }

INLINE unsigned transpose_matrix(unsigned x) {
    with_lanes(x, [](unsigned** lanes) {
        unsigned short matrix[8][8];
        for (int lane = 0; lane < 32; ++lane)
            for (int j = 0; j < 2; ++j) matrix[lane / 4][2 * (lane % 4) + j] = *lanes[lane] >> 16 * j;
        for (int lane = 0; lane < 32; ++lane)
            *lanes[lane] = matrix[2 * (lane % 4)][lane / 4] | unsigned(matrix[2 * (lane % 4) + 1][lane / 4]) << 16;
    });
    return x;
}

namespace shim {
// d[n] += sum over k of a[k] b[k][n], for `columns` results. The hardware does not round to nearest: it shifts products and sum to the
// exponent of the largest among them, cuts off what is below, adds exactly and cuts again (Fasi et al., PeerJ CS 2021). With TRUNCATE so
// does this, eight products at a time with a single bit to spare: the worst that is known of any generation.
template <int columns> inline void add_products(float* sums, const float* a, const float (*b)[columns], int count) {
#ifdef TRUNCATE
    for (int first = 0; first < 16; first += 8)
        for (int n = 0; n < count; ++n) {
            float terms[9], largest = 0;
            for (int k = 0; k < 8; ++k) terms[k] = a[first + k] * b[first + k][n];  // exact: halves have eleven bits
            terms[8] = sums[n];
            for (const float term : terms) largest = std::fmax(largest, std::fabs(term));
            if (!(largest > 0 && largest < INFINITY)) {
                for (int k = 0; k < 8; ++k) sums[n] += terms[k];
                continue;
            }
            const double quantum = std::ldexp(1.0, std::ilogb(largest) - 24);
            long long total = 0, unit = 1;
            for (const float term : terms) total += (long long)(term / quantum);
            while (std::llabs(total / unit) >> 24) unit *= 2;
            sums[n] = float(total / unit * unit * quantum);
        }
#else
    float added[columns] = {};
    for (int k = 0; k < 16; ++k)
        for (int n = 0; n < count; ++n) added[n] += a[k] * b[k][n];
    for (int n = 0; n < count; ++n) sums[n] += added[n];
#endif
}
}  // namespace shim

INLINE void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Argument { float* d; const unsigned* a; unsigned b[2]; } argument{d, a, {b0, b1}};
    with_lanes(argument, [](Argument** lanes) {
        float a[16][16], b[16][8], sums[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, column = 2 * (lane % 4);
            for (int i = 0; i < 4; ++i) {
                float* row = a[group + 8 * (i & 1)] + column + 8 * (i >> 1);
                row[0] = shim::low(lanes[lane]->a[i]);
                row[1] = shim::high(lanes[lane]->a[i]);
            }
            for (int i = 0; i < 2; ++i) {
                b[column + 8 * i][group] = shim::low(lanes[lane]->b[i]);
                b[column + 8 * i + 1][group] = shim::high(lanes[lane]->b[i]);
            }
        }
        auto sum = [&](int lane, int i) -> float& { return sums[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)]; };
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) sum(lane, i) = lanes[lane]->d[i];
        for (int row = 0; row < 16; ++row) shim::add_products<8>(sums[row], a[row], b, 8);
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) lanes[lane]->d[i] = sum(lane, i);
    });
}

INLINE void warpgroup_fence() {}
template <int transposed> INLINE void warpgroup_multiply_add(float (&d)[64], unsigned long long a, unsigned long long b) {
    shim::threads[shim::current].products.push_back({d, a, b, transposed != 0, 128});
}
template <int transposed> INLINE void warpgroup_multiply_add(float (&d)[2][64], unsigned long long a, unsigned long long b) {
    shim::threads[shim::current].products.push_back({d[0], a, b, transposed != 0, 256});
}
template <int count> INLINE void increase_registers() {}
template <int count> INLINE void decrease_registers() {}
INLINE void warpgroup_commit() {
    shim::Thread& thread = shim::threads[shim::current];
    thread.product_groups.push_back(std::move(thread.products));
    thread.products.clear();
}

namespace shim {
// Two neighbours of an operand in the 128-byte swizzle: (row, k) and (row, k + 1), or (row + 1, k) where rows are contiguous
// (`transposed`); `row` counts along the edge that is not summed over.
inline unsigned neighbours(unsigned long long descriptor, int row, int k, bool transposed) {
    const unsigned start = (descriptor & 0x3fff) << 4;
    const unsigned leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) fail("expected a descriptor with the 128-byte swizzle");
    const unsigned offset = transposed ? row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128
                                       : row / 8 * stride + row % 8 * 128 + k * 2;
    const unsigned address = start + offset;
    unsigned pair;
    memcpy(&pair, at(address ^ (address >> 3 & 0x70), 4, 4), 4);
    return pair;
}
inline void run(const Product& product) {
    const int lane = current % 32, warp = current / 32 % 4;
    const int columns = product.columns / 4;  // of this thread
    float a[2][16], b[16][64];
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 16; k += 2) {
            const unsigned pair = neighbours(product.a, 16 * warp + lane / 4 + 8 * i, k, false);
            a[i][k] = low(pair), a[i][k + 1] = high(pair);
        }
    for (int n = 0; n < columns; n += 2) {
        const int column = n / 2 * 8 + 2 * (lane % 4);
        for (int k = 0; k < 16; ++k) {
            if (!product.transposed && k % 2) continue;
            const unsigned pair = neighbours(product.b, column, k, product.transposed);
            b[k][n] = low(pair);
            if (product.transposed) {
                b[k][n + 1] = high(pair);
                continue;
            }
            const unsigned next = neighbours(product.b, column + 1, k, false);
            b[k + 1][n] = high(pair), b[k][n + 1] = low(next), b[k + 1][n + 1] = high(next);
        }
    }
    for (int i = 0; i < 2; ++i) {
        float sums[64];
        for (int n = 0; n < columns; ++n) sums[n] = product.d[n / 2 * 4 + 2 * i + n % 2];
        add_products<64>(sums, a[i], b, columns);
        for (int n = 0; n < columns; ++n) product.d[n / 2 * 4 + 2 * i + n % 2] = sums[n];
    }
}
}  // namespace shim

template <int pending, class Sums> INLINE void warpgroup_wait(Sums&) {
    auto& groups = shim::threads[shim::current].product_groups;
    while (groups.size() > pending) {
        for (const shim::Product& product : groups.front()) shim::run(product);
        groups.erase(groups.begin());
    }
    __syncwarp();  // all lanes of a warp wait together
}
