// Orthogonalisation and spectral norm of matrices whose short edge n is at most 256, one block a matrix, in one launch.
//
// The Gram matrix R = X X^T, the iterates Q and Z stay in shared memory from the first step to the last. X (n x m) goes by in panels of 64 columns:
// once for R, once more for the restart X1 = Q X (from the second-level cache, if what all processors work on fits), which is written as halves,
// read for its Gram matrix and read to become the result. Bytes an element of float32: 4 + 4 + 2 + 2 + 2 + 4 = 18, of halves 12, where five plain
// steps in half precision move some 50. The next panel is on its way while the tensor cores work on this one.
// Flops, with symmetry: n n m (Gram) + 2 n n m (application), each twice; 3 to 4 products of n^3 a step for T steps.
//
// No pass looks for the size of X first: it is packed relative to its largest entry so far, and normalised by the trace of R.
//
// small_n_1: halves. small_n_2: two planes, three products. The norm: seven squarings of R on chip, then the rescale.
#include "eights.cuh"
#include "packed.cuh"

constexpr int MOST_STEPS = 12;
constexpr int SQUARINGS = 7;
enum Task { DUALIZE, NORMALIZE, NORM };

struct Small {
    const Entry* entries;
    const uint64* table;
    float16* work;       // X1 of each matrix: panels of 64 columns
    double* norms;       // [matrices], for the norm
    long long stride;    // halves from one X1 to the next
    int rows, cols, tall, dtype;
    int task, steps, restart;  // restart before this step; for a norm, which never restarts, the steps are SQUARINGS / 4 rounded up
    float keep;
    float a[MOST_STEPS], b[MOST_STEPS], c[MOST_STEPS];
};

template <class P> struct Worker {
    const Small& p;
    const Entry e;
    const char* const source;
    const char* const other;
    char* const result;
    float16* const q;
    float16* const z;      // the panel of X, while it is on chip, lies over z and r
    float16* const r;
    double* const scratch;
    const int height, width, panels;
    const double size;     // Frobenius norm of X as R sees it: n^(1/4) keeps R within the range of halves, be it flat or of rank one
    const bool whole, whole_result;
    int exponent = -149;   // X is packed times 2^-exponent: its largest entry so far lies below 2 (that of the smallest float, to begin with)
    double stretch = 0;    // what makes the Frobenius norm of that `size`
    double root = 1, log_sum = 0;
    static constexpr float unit = UNIT<P::planes>;
    Squares<P> squares;
    Eight fetched[P::held ? P::held : 1];

    DEVICE Worker(const Small& params, unsigned char* shared, double* scratch)
        : p(params), e(params.entries[blockIdx.x]), source(place_of(e.source)), other(e.other < 0 ? nullptr : place_of(e.other)),
          result(place_of(e.result)), q(reinterpret_cast<float16*>(shared)), z(reinterpret_cast<float16*>(shared + P::bytes)),
          r(reinterpret_cast<float16*>(shared + 2 * P::bytes)), scratch(scratch),
          height(params.tall ? params.cols : params.rows), width(params.tall ? params.rows : params.cols),
          panels((width + CHUNK - 1) / CHUNK), size(sqrt(sqrt(double(height)))), whole(whole_words(source, p.cols, p.dtype)),
          whole_result(whole_words(result, p.cols, p.dtype) && whole_words(other, p.cols, p.dtype)) {}

    DEVICE char* place_of(int slot) const { return reinterpret_cast<char*>(p.table[slot]) + e.offset * bytes_of(p.dtype); }
    DEVICE Word* work(int panel) const {
        return reinterpret_cast<Word*>(p.work + blockIdx.x * p.stride) + panel * P::planes * P::eights;
    }

    // Eight neighbours of a panel: number `word` of line `line`. They run along the rows of the caller's matrix, which are the columns of X
    // where that is tall; of X1 along its rows.
    struct Spot { int line, word; };
    DEVICE static Spot spot(int number, bool down) {
        constexpr int of_column = P::edge / 8, of_row = CHUNK / 8;
        return down ? Spot{number / of_column, number % of_column} : Spot{number / of_row, number % of_row};
    }
    DEVICE static int in_panel(Spot at, bool down) {  // in halves
        const int block = down ? (at.line >> 3) * P::column_step + at.word * P::block_step
                               : at.word * P::column_step + (at.line >> 3) * P::block_step;
        return block / 2 + (at.line & 7) * 8;
    }

    DEVICE void fetch(Eight& eight, int phase, int panel, int number) const {
        if (phase == 0) {
            const Spot at = spot(number, p.tall);
            const int row = p.tall ? panel * CHUNK + at.line : at.line, col = (p.tall ? 0 : panel * CHUNK) + 8 * at.word;
            load_eight(eight, source, p.dtype, (long long)row * p.cols + col, row < p.rows ? p.cols - col : 0, whole);
        } else {
#pragma unroll
            for (int plane = 0; plane < P::planes; ++plane) {
                const Word word = work(panel)[plane * P::eights + number];
#pragma unroll
                for (int n = 0; n < 4; ++n) eight.at[4 * plane + n] = word.at[n];
            }
        }
    }
    // Those of the next panel are under way while this one is multiplied.
    DEVICE void fetch_ahead(int phase, int panel) {
        if (panel >= panels) return;
#pragma unroll
        for (int turn = 0; turn < P::held; ++turn) {
            const int number = threadIdx.x + turn * P::threads;
            if (number < P::eights) fetch(fetched[turn], phase, panel, number);
        }
    }

    // f(eight, number) for this thread's part of a panel.
    template <class F> DEVICE void each_eight(int phase, int panel, F f) {
#pragma unroll(P::held ? P::turns : 2)
        for (int turn = 0; turn < P::turns; ++turn) {
            const int number = threadIdx.x + turn * P::threads;
            if (number >= P::eights) break;
            if (turn < P::held) {
                f(fetched[turn], number);
            } else {
                Eight eight;
                fetch(eight, phase, panel, number);
                f(eight, number);
            }
        }
    }

    // A panel into shared memory, times 2^-exponent. Returns this thread's largest entry as it came.
    DEVICE float deposit(int phase, int panel) {
        const Shift shift(exponent);
        const bool down = phase == 0 && p.tall;
        float largest = 0;
        each_eight(phase, panel, [&](const Eight& eight, int number) {
            float16* const place = z + in_panel(spot(number, down), down);
            if (phase == 0) {
                float values[8];
                floats_of(values, eight, p.dtype);
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    largest = fabsf(values[n]) > largest ? fabsf(values[n]) : largest;
                    values[n] = shift(values[n]) * unit;
                }
                store_planes<P::planes>(values, [&](int plane) { return reinterpret_cast<Word*>(place + plane * (P::panel_plane / 2)); });
            } else {
#pragma unroll
                for (int plane = 0; plane < P::planes; ++plane) {
                    const uint32* at = eight.at + 4 * plane;
                    *reinterpret_cast<Word*>(place + plane * (P::panel_plane / 2)) = {at[0], at[1], at[2], at[3]};
                }
            }
        });
        return largest;
    }

    // The caller's entries may be of any size, and this is the first time that they are seen. So the exponent is that of the largest until now,
    // and where a panel brings a larger one, the sums follow. All factors are powers of two: nothing is rounded.
    DEVICE void deposit_first(int panel) {
        const float largest = deposit(0, panel);
        if (!any_thread(largest > 0 && ilogb(double(largest)) > exponent)) return;
        const int grown = ilogb(block_reduce<Max>(largest, scratch)), next = grown < 127 ? grown : 127;  // more: infinity
        squares.multiply(next - exponent > 60 ? 0 : Shift::power(2 * (exponent - next)));
        exponent = next;
        deposit(0, panel);
        __syncthreads();
    }

    // R = X X^T, panel by panel.
    DEVICE void gram(int phase) {
        squares.clear();
        const unsigned panel_at = shared_address(z);
        const bool down = phase == 0 && p.tall;
        auto rows = [&](unsigned (&f)[4], int plane, int i, int k) {
            load_panel<P>(f, panel_at + plane * P::panel_plane, 2 * i, 2 * k, false, down);
        };
        fetch_ahead(phase, 0);
#pragma unroll 1
        for (int panel = 0; panel < panels; ++panel) {
            if (phase == 0) {
                deposit_first(panel);
            } else {
                deposit(phase, panel);
                __syncthreads();
            }
            fetch_ahead(phase, panel + 1);
            squares.accumulate(CHUNK / 16, rows, rows);
            __syncthreads();
        }
        double factor = 1 / unit;
        if (phase == 0) {
            const double trace = squares.trace(scratch);
            stretch = unit * size * sqrt(divide_or_zero(1, trace));
            factor = divide_or_zero(unit * size * size, trace);
        }
        squares.store(r, float(factor), 0);
        __syncthreads();
    }

    // Q X, panel by panel, 32x32 at a time: first into the workspace, at last into the caller's array.
    DEVICE void apply(int phase, double scale) {
        const unsigned panel_at = shared_address(z), q_at = shared_address(q);
        const bool down = phase == 0 && p.tall;
        const int lane = threadIdx.x & 31;
        float* sums_panel = reinterpret_cast<float*>(reinterpret_cast<char*>(z) + P::panel_bytes);
        fetch_ahead(phase, 0);
#pragma unroll 1
        for (int panel = 0; panel < panels; ++panel) {
            deposit(phase, panel);
            __syncthreads();
            fetch_ahead(phase, panel + 1);
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
                            load_panel<P>(b[plane][half], panel_at + plane * P::panel_plane, 2 * k, 4 * j + 2 * half, true, !down);
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
#pragma unroll 1
            for (int number = threadIdx.x; number < P::eights; number += P::threads) {
                if (phase == 0) store_work(panel, number, sums_panel, float(scale));
                else store_result(panel, number, sums_panel, float(scale));
            }
        }
        __syncthreads();  // what went to the workspace is there for all
    }

    DEVICE void store_work(int panel, int number, const float* sums_panel, float scale) {
        const Spot at = spot(number, false);
        float values[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) values[n] = scale * sums_panel[at.line * P::pitch + 8 * at.word + n];
        store_planes<P::planes>(values, [&](int plane) { return work(panel) + plane * P::eights + number; });
    }
    DEVICE void store_result(int panel, int number, const float* sums_panel, float scale) {
        // Of a tall matrix neighbouring lanes take neighbouring columns of X, whose sums are neighbours: no conflicts here, and rows of 32 bytes there.
        const Spot at = p.tall ? Spot{number % CHUNK, number / CHUNK} : spot(number, false);
        const int row = p.tall ? panel * CHUNK + at.line : at.line, col = (p.tall ? 0 : panel * CHUNK) + 8 * at.word;
        if (row >= p.rows || col >= p.cols) return;
        float values[8];
#pragma unroll
        for (int n = 0; n < 8; ++n)
            values[n] = scale * sums_panel[p.tall ? (8 * at.word + n) * P::pitch + at.line : at.line * P::pitch + 8 * at.word + n];
        finish_eight(values, (long long)row * p.cols + col, p.cols - col, whole_result);
    }
    // Into the caller's array, added to another where one is given.
    DEVICE void finish_eight(float (&values)[8], long long place, int count, bool aligned) {
        if (other) {
            Eight eight;
            float more[8];
            load_eight(eight, other, p.dtype, place, count, aligned);
            floats_of(more, eight, p.dtype);
#pragma unroll
            for (int n = 0; n < 8; ++n) values[n] += p.keep * more[n];
        }
        store_eight(values, result, p.dtype, place, count, aligned);
    }

    // Steps [first, last) on R, leaving their product in Q. Four products a step: Z = b R + c R^2, Q = Z Q + a Q, W = R Z + a R, R = Z W + a W.
    // The very first step normalises R by its Schatten-4 norm (Schatten-8 of X); `root` is what X has to be multiplied by.
    //
    // For the norm: R = R^2 / ||R^2||_F, seven times, keeping the logarithm of the largest eigenvalue of the first R: log_sum + weight * (that
    // of the last R). At the end tr R^2 = 1 and (tr R^4)^(1/2) <= largest <= (tr R^4)^(1/4), of which the geometric mean is taken.
    //
    // One loop over products for all of it, so that their code exists once.
    DEVICE void iterate(int first, int last) {
        const bool powers = p.task != DUALIZE;
        float k = 1;
        double weight = 0.5;
#pragma unroll 1
        for (int number = 4 * first; number < 4 * last; ++number) {
            const int t = number >> 2, kind = powers ? 0 : number & 3;
            if (kind == 1 && t == first) continue;
            if (kind > 1 && t + 1 == last) break;
            float16* const left = kind == 1 ? q : r;
            squares.product(shared_address(kind & 1 ? z : r), shared_address(kind == 2 ? z : left));
            float alpha = kind == 2 ? k : 1, beta = alpha * p.a[t];
            if (powers || number == 0) {
                const double norm = sqrt(squares.sum_of_squares(scratch)) / (double(unit) * unit);
                const bool final = number + 1 == SQUARINGS;
                log_sum += weight * log(norm) * (final ? 1.5 : 1);
                weight *= 0.5;
                if (powers && final) return;
                alpha = float(divide_or_zero(1, norm)), beta = 0;
                if (!powers) k = float(divide_or_zero(1, sqrt(norm))), root = sqrt(divide_or_zero(1, sqrt(norm)));
            }
            if (kind == 0 && !powers) alpha = p.c[t] * k * k, beta = p.b[t] * k;
            squares.combine(alpha / unit, beta, left);
            __syncthreads();
            float16* const result = kind == 0 && !powers ? z : left;
            const int copies = result == z && t == first ? 2 : 1;  // Q = Z + a I begins
#pragma unroll 1
            for (int copy = 0; copy < copies; ++copy) squares.store(copy ? q : result, 1, copy ? p.a[t] * unit : 0);
            if (kind == 3) k = 1;
            __syncthreads();
        }
    }

    DEVICE void run() {
#pragma unroll 1
        for (int phase = 0; phase < 2; ++phase) {
            gram(phase);
            iterate(phase == 0 ? 0 : p.restart, phase == 0 ? p.restart : p.steps);
            if (p.task != DUALIZE) return rescale();
            apply(phase, (phase == 0 ? root * stretch : scale_of(e, p.table) / unit) / unit);
        }
    }

    DEVICE void rescale() {
        // Of the matrix times 2^-exponent, and of it as it came.
        const double norm = stretch == 0 ? 0 : exp(0.5 * log_sum) * unit / stretch;
        if (threadIdx.x == 0 && p.norms) p.norms[blockIdx.x] = scalbn(norm, exponent);
        if (p.task == NORM) return;
        const Shift shift(exponent);
        const float factor = float(divide_or_zero(scale_of(e, p.table), norm));
        const long long count = (long long)p.rows * p.cols;
        const bool aligned = whole_words(source, 8, p.dtype) && whole_words(result, 8, p.dtype) && whole_words(other, 8, p.dtype);
#pragma unroll 2
        for (long long place = 8 * threadIdx.x; place < count; place += 8 * P::threads) {
            const int left = count - place < 8 ? int(count - place) : 8;
            Eight eight;
            float values[8];
            load_eight(eight, source, p.dtype, place, left, aligned);
            floats_of(values, eight, p.dtype);
#pragma unroll
            for (int n = 0; n < 8; ++n) values[n] = shift(values[n]) * factor;
            finish_eight(values, place, left, aligned);
        }
    }
};

template <int blocks, int planes> DEVICE void small(const Small& p) {
    using P = Packed<blocks, planes>;
    DYNAMIC_SHARED(shared);
    __shared__ double scratch[33];
    Worker<P> worker(p, shared, scratch);
    worker.run();
}

#define FOR_EDGE(edge, planes) \
    KERNEL_BOUNDS_MIN((Packed<edge / 32, planes>::threads), (Packed<edge / 32, planes>::blocks_a_processor), small_##edge##_##planes, Small) { \
        small<edge / 32, planes>(p);                                                                                                          \
    }
FOR_EDGE(32, 1)
FOR_EDGE(64, 1)
FOR_EDGE(128, 1)
FOR_EDGE(192, 1)
FOR_EDGE(256, 1)
FOR_EDGE(32, 2)
FOR_EDGE(64, 2)
FOR_EDGE(128, 2)
