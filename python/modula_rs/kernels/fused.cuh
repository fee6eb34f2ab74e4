// The Newton-Schulz iteration on one matrix by one block, or by the blocks of a cluster of which each holds some panels of X on chip.
#pragma once
#include "panels.cuh"

// cluster 1: panels come and go. Else so many blocks share a matrix: each keeps its panels from the first step to the last, and all
// carry out the same steps on the same R, to the last bit.
template <class P, int cluster> struct Fused {
    static constexpr bool resident = cluster > 1;
    static constexpr float unit = UNIT<P::planes>;
    Panels<P> x;
    float16* const q;
    float16* const z;      // a panel that comes and goes lies over z and r, and so do the sums of a product with X
    float16* const r;
    float16* const store;  // the panels that stay
    int* const exponents;  // of each of those
    double* const scratch;
    const int rank, own, first, last;  // panels of this block
    const double size;     // Frobenius norm of X as R sees it: n^(1/4) keeps R within the range of halves, be it flat or of rank one
    double stretch = 0;    // what makes the Frobenius norm of that `size`
    double root = 1, log_sum = 0;
    Squares<P> squares;

    DEVICE Fused(const Small& p, unsigned char* shared)
        : x(p, blockIdx.x / cluster), q(reinterpret_cast<float16*>(shared + HEAD)), z(q + P::bytes / 2), r(z + P::bytes / 2),
          store(z + P::middle_bytes / 2), exponents(reinterpret_cast<int*>(shared + HEAD / 2 + 16)), scratch(reinterpret_cast<double*>(shared)),
          rank(blockIdx.x % cluster), own((x.count + cluster - 1) / cluster), first(rank * own),
          last(first + own < x.count ? first + own : x.count), size(sqrt(sqrt(double(p.tall ? p.cols : p.rows)))) {}

    DEVICE float16* panel_at(int panel) const { return resident ? store + (panel - first) * (P::panel_bytes / 2) : z; }
    DEVICE void fetch_ahead(int phase, int panel) {
        if (panel < last) x.fetch_ahead(phase, panel);
    }

    // The caller's entries may be of any size, and this is the first time that they are seen. So the exponent is that of the largest until now,
    // and where a panel brings a larger one, the sums follow. All factors are powers of two: nothing is rounded.
    DEVICE void deposit_first(int panel) {
        const float largest = x.deposit(0, panel, panel_at(panel));
        if (any_thread(largest > 0 && ilogb(double(largest)) > x.exponent)) {
            const int grown = ilogb(block_reduce<Max>(largest, scratch)), next = grown < 127 ? grown : 127;  // more: infinity
            squares.multiply(power_of_four(x.exponent - next));
            x.exponent = next;
            x.deposit(0, panel, panel_at(panel));
            __syncthreads();
        }
        if (resident && threadIdx.x == 0) exponents[panel - first] = x.exponent;
    }
    DEVICE static float power_of_four(int step) { return step < -60 ? 0 : Shift::power(2 * step); }

    // R = X X^T, panel by panel.
    DEVICE void gram(int phase) {
        squares.clear();
        const bool down = phase == 0 && x.p.tall;
        const bool coming = phase == 0 || !resident;
        if (coming) fetch_ahead(phase, first);
#pragma unroll 1
        for (int panel = first; panel < last; ++panel) {
            if (phase == 0) {
                deposit_first(panel);
            } else if (!resident) {
                x.deposit(phase, panel, z);
                __syncthreads();
            }
            if (coming) fetch_ahead(phase, panel + 1);
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
            stretch = unit * size * sqrt(divide_or_zero(1, trace));
            factor = divide_or_zero(unit * size * size, trace);
        }
        squares.store(r, float(factor), 0);
        __syncthreads();
    }

    // The sums of all blocks of the cluster, in the order of their ranks, so that each block ends with the same bits.
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
        cluster_sync();  // nobody reads this block's sums any more
    }

    // Q X, panel by panel, 32x32 at a time: first into the workspace, at last into the caller's array.
    DEVICE void apply(int phase, double scale) {
        const unsigned q_at = shared_address(q);
        const bool down = phase == 0 && x.p.tall;
        const int lane = threadIdx.x & 31;
        float* sums_panel = reinterpret_cast<float*>(reinterpret_cast<char*>(z) + (resident ? 0 : P::panel_bytes));
        if (!resident) fetch_ahead(phase, first);
#pragma unroll 1
        for (int panel = first; panel < last; ++panel) {
            if (!resident) {
                x.deposit(phase, panel, z);
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
                            struct alignas(8) Pair { float x, y; };  // in one store, which meets no bank conflict at this pitch
                            *reinterpret_cast<Pair*>(sums_panel + row * P::pitch + col) = {sums.at[m][n][2 * half], sums.at[m][n][2 * half + 1]};
                        }
            }
            __syncthreads();
            float factor = float(scale);
            if (phase == 0 && resident) factor *= Shift::power(most(exponents[panel - first] - x.exponent, -126));
#pragma unroll 1
            for (int number = threadIdx.x; number < P::eights; number += P::threads) {
                if (phase == 0) x.store_work(panel, resident ? panel_at(panel) : nullptr, number, sums_panel, factor);
                else x.store_result(panel, number, sums_panel, factor);
            }
            if (resident) __syncthreads();  // the sums of the next panel take the place of these
        }
        __syncthreads();  // what went to the workspace is there for all
    }

    // Steps [first, last) on R, leaving their product in Q. Four products a step: Z = b R + c R^2, Q = Z Q + a Q, W = R Z + a R, R = Z W + a W.
    // The very first step normalises R by its Schatten-4 norm (Schatten-8 of X); `root` is what X has to be multiplied by.
    //
    // For the norm: R = R^2 / ||R^2||_F, seven times, keeping the logarithm of the largest eigenvalue of the first R: log_sum + weight * (that
    // of the last R). At the end tr R^2 = 1 and (tr R^4)^(1/2) <= largest <= (tr R^4)^(1/4), of which the geometric mean is taken.
    //
    // One loop over products for all of it, so that their code exists once.
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
            const int copies = result == z && t == first ? 2 : 1;  // Q = Z + a I begins
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
            apply(phase, (phase == 0 ? root * stretch : scale_of(x.e, x.p.table) / unit) / unit);
        }
    }

    DEVICE void rescale() {
        // Of the matrix times 2^-exponent, and of it as it came.
        const double norm = stretch == 0 ? 0 : exp(0.5 * log_sum) * unit / stretch;
        if (threadIdx.x == 0 && x.p.norms) x.p.norms[x.matrix] = scalbn(norm, x.exponent);
        if (x.p.task == NORMALIZE) x.rescale(float(divide_or_zero(scale_of(x.e, x.p.table), norm)));
    }
};
