// Warm spectral norms: one step of orthogonal iteration on four estimates of the right singular vectors of each matrix.
//
// The method and its constants are modula-core's (linalg/subspace.rs). With Y = W V it needs G = Y^T Y and S = W^T Y only, sums over rows
// both: power_step makes them in one pass over stripes of rows, power_fold adds the stripes in a fixed order, power_finish does the rest.
//
// Bytes: 4 an element (float32), once; matrices wider than a tile twice. Flops: 16 an element. Per stripe 16 bytes a column are written and
// read, per matrix 80 more.
#include "power.cuh"

template <class T> DEVICE void power_step(const Power& p) {
    DYNAMIC_SHARED(shared);
    __shared__ typename Stripe<T, VECTORS>::Exchange exchange;
    typedef typename Arithmetic<T>::type V;
    const Entry e = p.entries[blockIdx.y];
    const int stripe = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles, part = blockIdx.y * p.stripes + stripe;
    const int first = tile * p.tile_cols, cols = first + p.tile_cols < p.cols ? p.tile_cols : p.cols - first;
    const int row = stripe * p.rows_per_stripe, last = row + p.rows_per_stripe < p.rows ? row + p.rows_per_stripe : p.rows;
    int exponent = NOTHING;
    if (p.phase == SUMS)
        for (int t = 0; t < p.tiles; ++t) exponent = p.exponents[part * p.tiles + t] > exponent ? p.exponents[part * p.tiles + t] : exponent;
    Stripe<T, VECTORS> pass(source_of<T>(e, p.table), estimates_of<V>(e, p), p.cols, first, cols, exponent, shared, exchange);
    const long long stride = (long long)p.rows * VECTORS;
    double* dots = p.dots ? p.dots + blockIdx.y * stride * p.tiles : nullptr;
    pass.run(Phase(p.phase), row, last, p.phase == DOTS ? dots + tile * stride : dots, stride, p.tiles);
    if (p.phase != SUMS && threadIdx.x == 0) p.exponents[part * p.tiles + tile] = pass.exponent;
    if (p.phase == DOTS) return;
    if (tile == 0 && threadIdx.x < VECTORS * VECTORS) p.squares[part * VECTORS * VECTORS + threadIdx.x] = pass.squares;
    V* sums = reinterpret_cast<V*>(p.sums) + (long long)part * VECTORS * p.cols + first;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k)
#pragma unroll
        for (int i = 0; i < pass.packs; ++i)
#pragma unroll
            for (int j = 0; j < pass.size; ++j)
                if (pass.column(i) + j < cols) sums[(long long)k * p.cols + pass.column(i) + j] = pass.sums[k][i * pass.size + j];
}

// S of each matrix over 4^(its exponent), in doubles.
template <class T> DEVICE void power_fold(const Power& p) {
    __shared__ double scratch[33];
    __shared__ double units[MOST_STRIPES];
    const int exponent = exponent_of(p, blockIdx.y, scratch);
    for (int s = threadIdx.x; s < p.stripes; s += blockDim.x) units[s] = unit_of<T>(p, blockIdx.y, s, exponent);
    __syncthreads();
    const long long size = (long long)VECTORS * p.cols, place = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= size) return;
    const auto* sums = reinterpret_cast<const typename Arithmetic<T>::type*>(p.sums) + blockIdx.y * p.stripes * size + place;
    double total = 0;
#pragma unroll 4
    for (int s = 0; s < p.stripes; ++s) total += sums[s * size] * units[s];
    p.image[blockIdx.y * size + place] = total;
}

// The norm on the space of Y, and the next estimates, a basis of its image. Where nothing is known of the matrix, or what was known is of
// another one, `wanted` asks for a cold start.
template <class T> DEVICE void power_finish(const Power& p) {
    typedef typename Arithmetic<T>::type V;
    __shared__ double scratch[33];
    __shared__ double basis[VECTORS][VECTORS];
    __shared__ double seen[VECTORS][VECTORS];
    __shared__ bool wanted;
    const Entry e = p.entries[blockIdx.x];
    const int exponent = exponent_of(p, blockIdx.x, scratch);
    const V* v = estimates_of<V>(e, p);
    V* next = estimates_of<V>(e, p, p.vectors);
    if (exponent == NOTHING) {  // a matrix of zeros has no estimates
        for (int c = threadIdx.x; c < VECTORS * p.cols; c += blockDim.x) next[c] = 0;
        if (threadIdx.x == 0) p.norms[blockIdx.x] = p.wanted[blockIdx.x] = 0;
        return;
    }
    const double* image = p.image + (long long)blockIdx.x * VECTORS * p.cols;
    if (threadIdx.x < VECTORS * VECTORS) {
        double total = 0;
        for (int s = 0; s < p.stripes; ++s)
            total += p.squares[(blockIdx.x * p.stripes + s) * VECTORS * VECTORS + threadIdx.x] * unit_of<T>(p, blockIdx.x, s, exponent);
        seen[threadIdx.x / VECTORS][threadIdx.x % VECTORS] = total;
    }
    // The ten inner products of the image, then the four squares of the estimates.
    double sums[16] = {};
    for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
        double s[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            s[i] = image[(long long)i * p.cols + c];
            const double x = v[(long long)i * p.cols + c];
            sums[10 + i] += x * x;
#pragma unroll
            for (int j = 0; j <= i; ++j) sums[i * (i + 1) / 2 + j] += s[i] * s[j];
        }
    }
    const double* totals = block_sums(sums);
    if (threadIdx.x == 0) {
        Square products, inner;
        for_each_entry([&](int i, int j) {
            products.at[i][j] = i < j ? totals[j * (j + 1) / 2 + i] : totals[i * (i + 1) / 2 + j];
            inner.at[i][j] = seen[i][j];
        });
        double before = 0;
#pragma unroll
        for (int j = 0; j < VECTORS; ++j) before = fmax(before, divide_or_zero(inner.at[j][j], totals[10 + j]));
        // With orthonormal Y C, the image of Y C under W^T holds the norm of W on the space of Y, and spans the next V.
        const Square c = orthonormalizer(inner), reached = multiply(multiply(c, products), transposed(c));
        const double square = largest_eigenvalue(reached);
        const Square rows = multiply(orthonormalizer(reached), c);
        for_each_entry([&](int i, int j) { basis[i][j] = rows.at[i][j]; });
        wanted = !(before > TURNED * square) || !(square > 0);
        p.wanted[blockIdx.x] = wanted;
        p.norms[blockIdx.x] = ldexp(sqrt(square), exponent);
    }
    __syncthreads();
    if (wanted) return;  // the cold start gives norm and estimates
    for (int j = 0; j < VECTORS; ++j) {
        if (basis[j][j] == 0) {
            restart(next, j, p.cols, scratch);
            continue;
        }
        for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
            double x = 0;
#pragma unroll
            for (int k = 0; k < VECTORS; ++k) x += basis[j][k] * image[(long long)k * p.cols + c];
            next[(long long)j * p.cols + c] = V(x);
        }
    }
}

#define FOR_TYPE(T, name, threads)                                                   \
    KERNEL_BOUNDS(threads, power_step_##name, Power) { power_step<T>(p); }           \
    KERNEL_BOUNDS(256, power_fold_##name, Power) { power_fold<T>(p); }               \
    KERNEL_BOUNDS(256, power_finish_##name, Power) { power_finish<T>(p); }
FOR_TYPE(float, float32, 512)
FOR_TYPE(double, float64, 256)
FOR_TYPE(float16, float16, 512)
FOR_TYPE(bfloat16, bfloat16, 512)
