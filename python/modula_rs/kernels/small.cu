// Orthogonalisation and spectral norm of matrices whose short edge n is at most 256, one block a matrix, in one launch.
//
// The Gram matrix R = X X^T, the iterates Q and Z stay in shared memory from the first step to the last. X (n x m) is read for its
// Frobenius norm, read again (from the second-level cache, mostly) for R, once more for the restart X1 = Q X, which is written as halves, read and turned
// into the result: 12 bytes (float32) and 6 (halves) an element in place of the 5 x (3 + 3) a plain Newton-Schulz iteration moves.
// Flops, with symmetry: n n m (Gram) + 2 n n m (application), each twice; 3 to 4 products of n^3 a step for T steps.
//
// small_n_1: halves. small_n_2: two planes, three products. The norm: seven squarings of R on chip, then the rescale.
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

DEVICE float element(const Small& p, const void* x, long long place) {
    if (p.dtype == 0) return reinterpret_cast<const float*>(x)[place];
    const uint16 bits = reinterpret_cast<const uint16*>(x)[place];
    return p.dtype == 1 ? half_to_float(bits) : bits_to_float(uint32(bits) << 16);
}
DEVICE void set_element(const Small& p, void* x, long long place, double value) {
    if (p.dtype == 0) reinterpret_cast<float*>(x)[place] = float(value);
    else reinterpret_cast<uint16*>(x)[place] = p.dtype == 1 ? float_to_half(float(value)) : float_to_bfloat(float(value));
}

template <class P> struct Worker {
    const Small& p;
    const Entry e;
    const char* source;
    float16* const q;
    float16* const z;      // the panel of X, while it is on chip, lies over z and r
    float16* const r;
    double* const scratch;
    const int height, width, panels;
    const double size;     // Frobenius norm of X as packed: n^(1/4) keeps R within the range of halves, be it flat or of rank one
    double frobenius = 0;  // of the caller's matrix
    double root = 1, log_sum = 0;
    static constexpr float unit = UNIT<P::planes>;
    Squares<P> squares;

    DEVICE Worker(const Small& params, unsigned char* shared, double* scratch)
        : p(params), e(params.entries[blockIdx.x]),
          source(reinterpret_cast<const char*>(params.table[e.source]) + e.offset * (params.dtype == 0 ? 4 : 2)),
          q(reinterpret_cast<float16*>(shared)), z(reinterpret_cast<float16*>(shared + P::bytes)),
          r(reinterpret_cast<float16*>(shared + 2 * P::bytes)), scratch(scratch),
          height(params.tall ? params.cols : params.rows), width(params.tall ? params.rows : params.cols),
          panels((width + CHUNK - 1) / CHUNK), size(sqrt(sqrt(double(height)))) {
        double total = 0;
        const long long count = (long long)p.rows * p.cols;
#pragma unroll 4
        for (long long i = threadIdx.x; i < count; i += P::threads) {
            const double x = element(p, source, i);
            total += x * x;
        }
        frobenius = sqrt(block_reduce<Sum>(total, scratch));
    }

    // Columns 64 panel.. of X, with the Frobenius norm `size`, into shared memory. Neighbouring lanes take neighbouring rows: stores without
    // bank conflicts, loads of whole 32-byte sectors.
    DEVICE void load_source(int panel) {
        const double factor = divide_or_zero(size * unit, frobenius);
        for (int k = threadIdx.x; k < P::edge * 8; k += P::threads) {
            const int row = k % P::edge, col = k / P::edge, first = panel * CHUNK + 8 * col;
            struct alignas(16) Word { uint16 at[8]; } word[P::planes];
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const bool inside = row < height && first + n < width;
                const long long place = p.tall ? (long long)(first + n) * p.cols + row : (long long)row * p.cols + first + n;
                float value = inside ? float(double(element(p, source, place)) * factor) : 0;
#pragma unroll
                for (int plane = 0; plane < P::planes; ++plane) {
                    word[plane].at[n] = float_to_half(value);
                    value -= half_to_float(word[plane].at[n]);
                }
            }
            const int place = (col * (P::edge / 8) + row / 8) * 64 + row % 8 * 8;
#pragma unroll
            for (int plane = 0; plane < P::planes; ++plane)
                *reinterpret_cast<Word*>(z + plane * (P::panel_plane / 2) + place) = word[plane];
        }
    }
    DEVICE float16* work(int panel) {
        return p.work + blockIdx.x * p.stride + (long long)panel * (P::panel_bytes / 2);
    }
    DEVICE void load_work(int panel) {
        struct alignas(16) Word { uint32 at[4]; };
        const Word* from = reinterpret_cast<const Word*>(work(panel));
        for (int k = threadIdx.x; k < P::panel_bytes / 16; k += P::threads) reinterpret_cast<Word*>(z)[k] = from[k];
    }

    DEVICE void load(int panel, int phase) {
        if (phase == 0) load_source(panel);
        else load_work(panel);
        __syncthreads();
    }

    // R = X X^T, panel by panel.
    DEVICE void gram(int phase) {
        squares.clear();
        const unsigned panel_at = shared_address(z);
        auto rows = [&](unsigned (&f)[4], int plane, int i, int k) {
            load_panel_rows<P>(f, panel_at + plane * P::panel_plane, i, k);
        };
#pragma unroll 1
        for (int panel = 0; panel < panels; ++panel) {
            load(panel, phase);
            squares.accumulate(CHUNK / 16, rows, rows);
            __syncthreads();
        }
        squares.store(r, 1 / unit, 0);
        __syncthreads();
    }

    // Q X, panel by panel, 32x32 at a time: first into the workspace, at last into the caller's array.
    DEVICE void apply(int phase, double scale) {
        const unsigned panel_at = shared_address(z), q_at = shared_address(q);
        const int lane = threadIdx.x & 31;
        float* sums_panel = reinterpret_cast<float*>(reinterpret_cast<char*>(z) + P::panel_bytes);
#pragma unroll 1
        for (int panel = 0; panel < panels; ++panel) {
            load(panel, phase);
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
                            load_panel_cols<P>(b[plane][half], panel_at + plane * P::panel_plane, 2 * j + half, k);
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
                            sums_panel[row * P::pitch + col] = sums.at[m][n][2 * half];
                            sums_panel[row * P::pitch + col + 1] = sums.at[m][n][2 * half + 1];
                        }
            }
            __syncthreads();
            for (int k = threadIdx.x; k < P::edge * CHUNK; k += P::threads) {
                const bool down = phase == 0 || p.tall;  // neighbouring lanes: neighbouring rows
                const int row = down ? k % P::edge : k / CHUNK, col = down ? k / P::edge : k % CHUNK;
                const double value = scale * sums_panel[row * P::pitch + col];
                const int c = panel * CHUNK + col;
                if (phase == 0) store_work(panel, row, col, float(value));
                else if (row < height && c < width) store_at(p.tall ? (long long)c * p.cols + row : (long long)row * p.cols + c, value);
            }
        }
        __syncthreads();  // what went to the workspace is there for all
    }

    DEVICE void store_work(int panel, int row, int col, float x) {
        const int place = (col / 8 * (P::edge / 8) + row / 8) * 64 + row % 8 * 8 + col % 8;
#pragma unroll
        for (int plane = 0; plane < P::planes; ++plane) {
            const uint16 bits = float_to_half(x);
            work(panel)[plane * (P::panel_plane / 2) + place].bits = bits;
            x -= half_to_float(bits);
        }
    }
    DEVICE void store_at(long long place, double value) {
        const int bytes = p.dtype == 0 ? 4 : 2;
        if (e.other >= 0)
            value += double(p.keep) * element(p, reinterpret_cast<const char*>(p.table[e.other]) + e.offset * bytes, place);
        set_element(p, reinterpret_cast<char*>(p.table[e.result]) + e.offset * bytes, place, value);
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
            apply(phase, (phase == 0 ? root : scale_of(e, p.table) / unit) / unit);
        }
    }

    DEVICE void rescale() {
        const double norm = frobenius == 0 ? 0 : exp(0.5 * log_sum) * (frobenius / size);
        if (threadIdx.x == 0 && p.norms) p.norms[blockIdx.x] = norm;
        if (p.task == NORM) return;
        const double factor = divide_or_zero(scale_of(e, p.table), norm);
        const long long count = (long long)p.rows * p.cols;
#pragma unroll 1
        for (long long i = threadIdx.x; i < count; i += P::threads) store_at(i, element(p, source, i) * factor);
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
    KERNEL_BOUNDS((Packed<edge / 32, planes>::threads), small_##edge##_##planes, Small) { small<edge / 32, planes>(p); }
FOR_EDGE(32, 1)
FOR_EDGE(64, 1)
FOR_EDGE(128, 1)
FOR_EDGE(192, 1)
FOR_EDGE(256, 1)
FOR_EDGE(32, 2)
FOR_EDGE(64, 2)
FOR_EDGE(128, 2)
