// The cold start of block power iteration: the Lanczos method finds norm and estimates of the matrices that are flagged in `wanted`.
//
// The method and its constants are modula-core's (linalg/lanczos.rs): steps with full reorthogonalisation until the residual is small.
//
// The kernel is launched in every call, so that the host needs no synchronisation. It returns at once unless a matrix is flagged, and in
// nearly every call none is. Each block takes one matrix after the other. One block alone reads some 100 GB/s. So many matrices together,
// as in a first call, take the time of reading them at the speed of the memory, and a single large matrix is slow. An element takes 4 bytes
// and 4 flops a step.
#include "power.cuh"

constexpr int FEWEST_STEPS = MODULA_LANCZOS_LEAST, MOST_LANCZOS_STEPS = MODULA_LANCZOS_MOST;
constexpr double TOLERANCE = MODULA_LANCZOS_TOLERANCE;  // relative residual, in the square of the norm

struct Tridiagonal {
    double diagonal[MOST_LANCZOS_STEPS], beside[MOST_LANCZOS_STEPS];  // beside: the entries next to the diagonal
    double weights[MOST_LANCZOS_STEPS];                               // the unit eigenvector of the largest eigenvalue
    double largest;                                                   // the largest eigenvalue
};

// One warp finds the largest eigenvalue by multisection, where each lane tests one point: all pivots are positive exactly above the largest
// eigenvalue. The recurrence of the pivots then gives the eigenvector.
DEVICE void largest_eigenpair(Tridiagonal& t, int steps) {
    const int lane = threadIdx.x & 31;
    double low = 0, high = 0;
    for (int i = 0; i < steps; ++i) {
        low = Max::of(t.diagonal[i], low);
        high = Max::of(t.diagonal[i] + (i ? t.beside[i - 1] : 0) + (i + 1 < steps ? t.beside[i] : 0), high);
    }
    high += 1e-14 * high;
#pragma unroll 1
    for (int round = 0; round < 10; ++round) {
        const double x = low + (high - low) * ((lane + 1) / 33.0);
        bool above = true;
        double pivot = 1;
        for (int i = 0; i < steps && above; ++i) {
            pivot = x - t.diagonal[i] - (i ? t.beside[i - 1] * t.beside[i - 1] / pivot : 0);
            above = pivot > 0;
        }
        const double next = warp_reduce<Max>(above ? low : x);
        high = -warp_reduce<Max>(above ? -x : -high);
        low = next;
    }
    if (lane) return;
    t.largest = high;
    double weight = 1, squares = 0, pivot = 1;
    for (int i = 0; i < steps; ++i) {
        t.weights[i] = weight;
        squares += weight * weight;
        pivot = high - t.diagonal[i] - (i ? t.beside[i - 1] * t.beside[i - 1] / pivot : 0);
        if (i + 1 < steps) weight *= pivot / t.beside[i];
    }
    for (int i = 0; i < steps; ++i) t.weights[i] /= sqrt(squares);
}

DEVICE double dot(const float* a, const float* b, int cols, double* scratch) {
    double total = 0;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) total += double(a[c]) * b[c];
    return block_reduce<Sum>(total, scratch);
}

// Lanczos vector number k of this block. The sums of the teams are stored after the last vector.
DEVICE float* lanczos_vector(const Power& p, int k) {
    return p.basis + ((long long)blockIdx.x * (MOST_LANCZOS_STEPS + 1 + p.teams) + k) * p.cols;
}

// Computes vector k + 1 = A^T A (vector k), where A = W / 2^exponent. A narrow matrix is cut into stripes, one for each of several teams of
// threads, so that as many bytes are in flight as for a wide one.
template <class T> DEVICE void apply(const Power& p, int matrix, int k, int exponent) {
    DYNAMIC_SHARED(shared);
    __shared__ typename Stripe<T, 1>::Exchange exchange;
    const T* w = source_of<T>(p.entries[matrix], p.table);
    double* dots = p.dots + (long long)matrix * p.rows * VECTORS * p.tiles;
    const int threads = blockDim.x / p.teams, team = threadIdx.x / threads;
    const int steps = (p.rows + STAGE_ROWS * p.teams - 1) / (STAGE_ROWS * p.teams);
    const int row = team * steps * STAGE_ROWS, last = row + steps * STAGE_ROWS < p.rows ? row + steps * STAGE_ROWS : p.rows;
#pragma unroll 1
    for (int phase = p.tiles == 1 ? BOTH : DOTS;; phase = SUMS) {
#pragma unroll 1
        for (int tile = 0; tile < p.tiles; ++tile) {
            const int first = tile * p.tile_cols, cols = first + p.tile_cols < p.cols ? p.tile_cols : p.cols - first;
            Stripe<T, 1> pass(w, lanczos_vector(p, k), p.cols, first, cols, exponent, shared, exchange, threads, team);
            pass.run(Phase(phase), row, last, steps, phase == DOTS ? dots + (long long)tile * p.rows : dots, p.rows, p.tiles);
            const double unit = ldexp(1.0, -2 * (pass.shift + exponent));
            float* sums = lanczos_vector(p, MOST_LANCZOS_STEPS + 1 + team) + first;
#pragma unroll
            for (int i = 0; i < pass.width; ++i) {
                const int c = pass.column(i / pass.size) + i % pass.size;
                if (phase != DOTS && c < cols) sums[c] = float(pass.sums[0][i] * unit);
            }
        }
        __syncthreads();
        if (phase != DOTS) break;
    }
    const float* sums = lanczos_vector(p, MOST_LANCZOS_STEPS + 1);
    for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
        float total = 0;
        for (int i = 0; i < p.teams; ++i) total += sums[(long long)i * p.cols + c];
        lanczos_vector(p, k + 1)[c] = total;
    }
    __syncthreads();
}

// Fills a vector with a unit vector that depends on no matrix.
DEVICE void restart(float* vector, int place, int cols, double* scratch) {
    const double length = restart_length(place, cols, scratch);
    for (int c = threadIdx.x; c < cols; c += blockDim.x) vector[c] = float(restart_entry(place, cols, c) / length);
}

// Subtracts from vector `count` its components along the earlier vectors, twice: the second round removes what rounding left in the first.
DEVICE void orthogonalise(const Power& p, int count) {
    __shared__ double overlaps[MOST_LANCZOS_STEPS];
    const float* basis = lanczos_vector(p, 0);
    float* next = lanczos_vector(p, count);
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int round = 0; round < 2; ++round) {
#pragma unroll 1
        for (int k = threadIdx.x >> 5; k < count; k += blockDim.x >> 5) {
            float overlap = 0;
            for (int c = lane; c < p.cols; c += 32) overlap += basis[(long long)k * p.cols + c] * next[c];
            for (int step = 16; step; step /= 2) overlap += shuffle_xor(overlap, step);
            if (lane == 0) overlaps[k] = overlap;
        }
        __syncthreads();
#pragma unroll 1
        for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
            float x = next[c];
            for (int k = 0; k < count; ++k) x -= float(overlaps[k]) * basis[(long long)k * p.cols + c];
            next[c] = x;
        }
        __syncthreads();
    }
}

template <class T> DEVICE void search(const Power& p, int matrix) {
    constexpr double epsilon = 1.2e-7;  // the rounding unit of float32
    __shared__ double scratch[33];
    __shared__ double bound;  // the largest diagonal entry, which is at most the largest eigenvalue
    __shared__ Tridiagonal t;
    __shared__ int exponent;
    const int found = exponent_of(p, matrix, scratch);
    if (threadIdx.x == 0) exponent = found, bound = 0;
    restart(lanczos_vector(p, 0), 0, p.cols, scratch);
    int steps = 0;
    for (bool done = false; !done;) {
        __syncthreads();
        apply<T>(p, matrix, steps, exponent);
        const double diagonal = dot(lanczos_vector(p, steps), lanczos_vector(p, steps + 1), p.cols, scratch);
        if (threadIdx.x == 0) t.diagonal[steps] = diagonal, bound = Max::of(diagonal, bound);
        ++steps;
        orthogonalise(p, steps);
        float* next = lanczos_vector(p, steps);
        const double length = sqrt(dot(next, next, p.cols, scratch));
        done = !(length > 4 * epsilon * bound) || steps == p.cols || steps == MOST_LANCZOS_STEPS;
        if (done || steps >= FEWEST_STEPS) {
            if (threadIdx.x < 32) largest_eigenpair(t, steps);
            __syncthreads();
            done = done || length * fabs(t.weights[steps - 1]) <= TOLERANCE * t.largest;
        }
        for (int c = threadIdx.x; c < p.cols; c += blockDim.x) next[c] = float(divide_or_zero(next[c], length));
        if (threadIdx.x == 0) t.beside[steps - 1] = length;
    }
    // A matrix with entries that are not finite gets zeros as estimates.
    const bool usable = t.largest - t.largest == 0;
    float* vectors = estimates_of(p.entries[matrix], p, p.vectors);
    for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
        double x = 0;
        for (int k = 0; k < steps; ++k) x += t.weights[k] * lanczos_vector(p, k)[c];
        vectors[c] = usable ? float(x) : 0;
    }
    // The other estimates are unit vectors for the next step of block power iteration to start from.
    for (int k = 1; k < VECTORS; ++k) {
        float* vector = vectors + (long long)k * p.cols;
        if (usable) restart(vector, k, p.cols, scratch);
        else for (int c = threadIdx.x; c < p.cols; c += blockDim.x) vector[c] = 0;
    }
    if (threadIdx.x == 0) p.norms[matrix] = ldexp(sqrt(t.largest), exponent);
    __syncthreads();
}

template <class T> DEVICE void lanczos(const Power& p) {
    for (int matrix = blockIdx.x; matrix < p.matrices; matrix += gridDim.x)
        if (p.wanted[matrix]) search<T>(p, matrix);
}

KERNEL_BOUNDS(512, lanczos_float32, Power) { lanczos<float>(p); }
KERNEL_BOUNDS(512, lanczos_float16, Power) { lanczos<float16>(p); }
KERNEL_BOUNDS(512, lanczos_bfloat16, Power) { lanczos<bfloat16>(p); }
