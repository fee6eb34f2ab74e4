// The Newton-Schulz iteration on one matrix in one kernel: by one block, or by the blocks of a cluster, which hold the panels of X on chip.
#pragma once
#include "panels.cuh"

// With cluster = 1 the panels of X are streamed through shared memory. Else `cluster` blocks share a matrix: each holds its own panels
// resident in shared memory from the first step to the last, and all blocks carry out the same steps on an R that is the same to the last
// bit.
template <class P, int cluster> struct Fused {
    static constexpr bool resident = cluster > 1;
    static constexpr float unit = UNIT<P::planes>;
    Panels<P> x;
    float16* const q;
    float16* const z;      // a streamed panel, and the sums of a product with X, take the place of z and r
    float16* const r;
    float16* const panels;  // the resident panels
    int* const exponents;  // the exponent of each resident panel
    double* const scratch;
    const int rank, own, first, last;  // rank of this block in its cluster; how many panels it has, and their range
    const double size;     // the Frobenius norm to which X is scaled: n^(1/4) keeps R in the range of halves for any spectrum
    double to_size = 0;    // the factor that scales X to that norm
    double root = 1, log_sum = 0;  // see iterate
    Squares<P> squares;

    DEVICE Fused(const Small& p, unsigned char* shared)
        : x(p, blockIdx.x / cluster), q(reinterpret_cast<float16*>(shared + HEAD)), z(q + P::bytes / 2), r(z + P::bytes / 2),
          panels(z + P::middle_bytes / 2), exponents(reinterpret_cast<int*>(shared + HEAD / 2 + 16)),
          scratch(reinterpret_cast<double*>(shared)),
          rank(blockIdx.x % cluster), own((x.count + cluster - 1) / cluster), first(rank * own),
          last(first + own < x.count ? first + own : x.count), size(sqrt(sqrt(double(p.tall ? p.cols : p.rows)))) {}

    DEVICE float16* panel_at(int panel) const { return resident ? panels + (panel - first) * (P::panel_bytes / 2) : z; }
    DEVICE void fetch_ahead(int phase, int panel) {
        if (panel < last) x.fetch_ahead(phase, panel);
    }

    // Stores a panel of X that has not been read before. The caller's entries may have any size, so the exponent is the exponent of the
    // largest entry so far. If a panel has a larger entry, the sums are rescaled and the panel is stored again. All factors are powers of
    // two, so nothing is rounded.
    DEVICE void store_new_panel(int panel) {
        const float largest = x.store_panel(0, panel, panel_at(panel));
        if (any_thread(largest > 0 && ilogb(double(largest)) > x.exponent)) {
            const int grown = ilogb(block_reduce<Max>(largest, scratch)), next = grown < 127 ? grown : 127;  // larger: an infinity
            squares.multiply(power_of_four(x.exponent - next));
            x.exponent = next;
            x.store_panel(0, panel, panel_at(panel));
            __syncthreads();
        }
        if (resident && threadIdx.x == 0) exponents[panel - first] = x.exponent;
    }
    DEVICE static float power_of_four(int step) { return step < -60 ? 0 : Shift::power(2 * step); }

    // Computes R = X X^T, panel by panel.
    DEVICE void gram(int phase) {
        squares.clear();
        const bool down = phase == 0 && x.p.tall;
        const bool loads = phase == 0 || !resident;  // else the panels are in shared memory already
        if (loads) fetch_ahead(phase, first);
#pragma unroll 1
        for (int panel = first; panel < last; ++panel) {
            if (phase == 0) {
                store_new_panel(panel);
            } else if (!resident) {
                x.store_panel(phase, panel, z);
                __syncthreads();
            }
            if (loads) fetch_ahead(phase, panel + 1);
            const unsigned at = shared_address(panel_at(panel));
            auto rows = [&](unsigned (&f)[4], int plane, int i, int k) {
                load_panel<P>(f, at + plane * P::panel_plane, 2 * i, 2 * k, false, down);
            };
            squares.accumulate(CHUNK / 16, rows, rows);
            if (!resident) __syncthreads();
        }
        if constexpr (resident) add_up(phase);
        double factor = 1 / unit;
        if (phase == 0) {
            const double trace = squares.trace(scratch);
            to_size = unit * size * sqrt(divide_or_zero(1, trace));
            factor = divide_or_zero(unit * size * size, trace);
        }
        squares.store(r, float(factor), 0);
        __syncthreads();
    }

    // Adds the sums of all blocks of the cluster, in the order of their ranks, so that each block gets the same bits.
    DEVICE void add_up(int phase) {
        float* const mine = reinterpret_cast<float*>(q) + threadIdx.x;
        squares.each_sum([&](int number, float& sum) { mine[number * P::threads] = sum; });
        if (threadIdx.x == 0) exponents[P::most_panels] = x.exponent;
        cluster_sync();
        int highest = x.exponent;
        if (phase == 0)
            for (int block = 0; block < cluster; ++block) {
                const int there = int(load_remote(shared_address(exponents + P::most_panels), block));
                highest = there > highest ? there : highest;
            }
        squares.clear();
#pragma unroll 1
        for (int block = 0; block < cluster; ++block) {
            float factor = 1;
            if (phase == 0) factor = power_of_four(int(load_remote(shared_address(exponents + P::most_panels), block)) - highest);
            squares.each_sum([&](int number, float& sum) {
                sum += factor * bits_to_float(load_remote(shared_address(mine + number * P::threads), block));
            });
        }
        x.exponent = highest;
        cluster_sync();  // after this no block reads the sums of another
    }

    // Computes Q X, panel by panel, 32x32 at a time. Phase 0 stores X1 = Q X into the workspace or over the resident panels, phase 1 stores
    // the result into the caller's array.
    DEVICE void apply(int phase, double scale) {
        const unsigned q_at = shared_address(q);
        const bool down = phase == 0 && x.p.tall;
        const int lane = threadIdx.x & 31;
        float* sums_panel = reinterpret_cast<float*>(reinterpret_cast<char*>(z) + (resident ? 0 : P::panel_bytes));
        if (!resident) fetch_ahead(phase, first);
#pragma unroll 1
        for (int panel = first; panel < last; ++panel) {
            if (!resident) {
                x.store_panel(phase, panel, z);
                __syncthreads();
                fetch_ahead(phase, panel + 1);
            }
            const unsigned at = shared_address(panel_at(panel));
#pragma unroll 1
            for (int s = threadIdx.x >> 5; s < P::strips; s += P::warps) {
                const int i = s >> 1, j = s & 1;
                Square sums = {};
#pragma unroll 1
                for (int k = 0; k < P::strips; ++k) {
                    unsigned a[P::planes][2][4], b[P::planes][2][4];
#pragma unroll
                    for (int plane = 0; plane < P::planes; ++plane)
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            load_symmetric(a[plane][half], q_at + plane * P::plane_bytes, 2 * i + half, k);
                            load_panel<P>(b[plane][half], at + plane * P::panel_plane, 2 * k, 4 * j + 2 * half, true, !down);
                        }
                    multiply_square<P::planes>(sums, a, b);
                }
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int n = 0; n < 4; ++n)
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            const int row = 32 * i + 16 * m + 8 * half + (lane >> 2), col = 32 * j + 8 * n + 2 * (lane & 3);
                            struct alignas(8) Pair { float x, y; };  // one store, which meets no bank conflict at this pitch
                            *reinterpret_cast<Pair*>(sums_panel + row * P::pitch + col) = {
                                sums.at[m][n][2 * half], sums.at[m][n][2 * half + 1]
                            };
                        }
            }
            __syncthreads();
            float factor = float(scale);
            if (phase == 0 && resident) factor *= Shift::power(larger_of(exponents[panel - first] - x.exponent, -126));
#pragma unroll 1
            for (int number = threadIdx.x; number < P::eights; number += P::threads) {
                if (phase == 0) x.store_work(panel, resident ? panel_at(panel) : nullptr, number, sums_panel, factor);
                else x.store_result(panel, number, sums_panel, factor);
            }
            if (resident) __syncthreads();  // the sums of the next panel overwrite these
        }
        __syncthreads();  // all threads of the block see what was stored to the workspace
    }

    // Carries out the steps [first, last) on R, and leaves the product of their polynomials in Q. A step has four products: Z = b R + c
    // R^2, Q = Z Q + a Q, W = R Z + a R, R = Z W + a W. The very first step normalises R by its Schatten-4 norm, that is, X by its
    // Schatten-8 norm, and `root` is the factor for X.
    //
    // For the norm: R = R^2 / ||R^2||_F, seven times. The logarithm of the largest eigenvalue of the first R is log_sum plus weight times
    // the logarithm of the largest eigenvalue of the last R. At the end tr R^2 = 1 and (tr R^4)^(1/2) <= largest <= (tr R^4)^(1/4), and the
    // geometric mean of these bounds is taken.
    //
    // One loop runs all products, so that the code of a product exists once.
    DEVICE void iterate(int first, int last) {
        const bool powers = x.p.task != DUALIZE;
        float k = 1;
        double weight = 0.5;
#pragma unroll 1
        for (int number = 4 * first; number < 4 * last; ++number) {
            const int t = number >> 2, kind = powers ? 0 : number & 3;
            if (kind == 1 && t == first) continue;
            if (kind > 1 && t + 1 == last) break;
            float16* const left = kind == 1 ? q : r;
            squares.product(shared_address(kind & 1 ? z : r), shared_address(kind == 2 ? z : left));
            float alpha = kind == 2 ? k : 1, beta = alpha * x.p.a[t];
            if (powers || number == 0) {
                const double norm = sqrt(squares.sum_of_squares(scratch)) / (double(unit) * unit);
                const bool final = number + 1 == SQUARINGS;
                log_sum += weight * log(norm) * (final ? 1.5 : 1);
                weight *= 0.5;
                if (powers && final) return;
                alpha = float(divide_or_zero(1, norm)), beta = 0;
                if (!powers) k = float(divide_or_zero(1, sqrt(norm))), root = sqrt(divide_or_zero(1, sqrt(norm)));
            }
            if (kind == 0 && !powers) alpha = x.p.c[t] * k * k, beta = x.p.b[t] * k;
            squares.combine(alpha / unit, beta, left);
            __syncthreads();
            float16* const result = kind == 0 && !powers ? z : left;
            const int copies = result == z && t == first ? 2 : 1;  // the first step of a phase also stores Q = Z + a I
#pragma unroll 1
            for (int copy = 0; copy < copies; ++copy) squares.store(copy ? q : result, 1, copy ? x.p.a[t] * unit : 0);
            if (kind == 3) k = 1;
            __syncthreads();
        }
    }

    DEVICE void run() {
#pragma unroll 1
        for (int phase = 0; phase < 2; ++phase) {
            gram(phase);
            iterate(phase == 0 ? 0 : x.p.restart, phase == 0 ? x.p.restart : x.p.steps);
            if (x.p.task != DUALIZE) return rescale();
            apply(phase, (phase == 0 ? root * to_size : scale_of(x.e, x.p.table) / unit) / unit);
        }
    }

    DEVICE void rescale() {
        // The norm of the matrix times 2^-exponent. p.norms receives the norm of the caller's matrix.
        const double norm = to_size == 0 ? 0 : exp(0.5 * log_sum) * unit / to_size;
        if (threadIdx.x == 0 && x.p.norms) x.p.norms[x.matrix] = scalbn(norm, x.exponent);
        if (x.p.task == NORMALIZE) x.rescale(float(divide_or_zero(scale_of(x.e, x.p.table), norm)));
    }
};
