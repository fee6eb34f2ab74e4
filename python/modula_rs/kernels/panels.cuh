// Panels of 64 columns of a matrix X: loaded from the caller's array into shared memory as halves, times a power of two, and stored back.
#pragma once
#include "eights.cuh"
#include "packed.cuh"

constexpr int MOST_STEPS = 8;
constexpr int SQUARINGS = 7;
enum Task { DUALIZE, NORMALIZE, NORM };

struct Small {
    const Entry* entries;
    const uint64* table;
    float16* work;       // X1 of each matrix, in panels of 64 columns
    double* norms;       // [matrices]: receives the norms, if set
    long long stride;    // halves from one X1 to the next
    int rows, cols, tall, dtype;
    int task, steps, restart;  // restart before step `restart`; a norm never restarts, and has SQUARINGS / 4 steps, rounded up
    float a[MOST_STEPS], b[MOST_STEPS], c[MOST_STEPS];
};

template <class P> struct Panels {
    const Small& p;
    const int matrix;
    const Entry e;
    const char* const source;
    const int width, count;  // columns of X, and its panels
    const bool whole;
    int exponent = -149;     // X is stored times 2^-exponent, which brings its largest entry so far below 2; -149: the smallest float's
    static constexpr float unit = UNIT<P::planes>;
    Eight fetched[P::prefetched ? P::prefetched : 1];

    DEVICE Panels(const Small& params, int matrix)
        : p(params), matrix(matrix), e(params.entries[matrix]), source(place_of(e, p.table, e.source, p.dtype)),
          width(params.tall ? params.rows : params.cols), count((width + CHUNK - 1) / CHUNK),
          whole(whole_words(source, p.cols, p.dtype)) {}

    // Computed only when it is needed, at the end, because registers are scarce before.
    DEVICE char* result() const { return place_of(e, p.table, e.result, p.dtype); }

    DEVICE Word* work(int panel) const {
        return reinterpret_cast<Word*>(p.work + matrix * p.stride) + panel * P::planes * P::eights;
    }

    // Eight neighbours of a panel: word number `word` of line `line`. A line is a row of X or, with `down`, a column of X. The words of X
    // run along the rows of the caller's matrix, which are columns of X if that matrix is tall; the words of X1 run along its rows.
    struct Spot { int line, word; };
    DEVICE static Spot spot(int number, bool down) {
        constexpr int of_column = P::edge / 8, of_row = CHUNK / 8;
        return down ? Spot{number / of_column, number % of_column} : Spot{number / of_row, number % of_row};
    }
    DEVICE static Word* in_panel(float16* panel, int number, int plane, bool down) {
        const Spot at = spot(number, down);
        const int block = down ? (at.line >> 3) * P::column_step + at.word * P::block_step
                               : at.word * P::column_step + (at.line >> 3) * P::block_step;
        return reinterpret_cast<Word*>(reinterpret_cast<char*>(panel) + plane * P::panel_plane + block + (at.line & 7) * 16);
    }

    // Loads eight neighbours: of X in phase 0, of X1 in phase 1.
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
    // Starts the loads of the next panel, which are in flight while this panel is multiplied.
    DEVICE void fetch_ahead(int phase, int panel) {
#pragma unroll
        for (int load = 0; load < P::prefetched; ++load) {
            const int number = threadIdx.x + load * P::threads;
            if (number < P::eights) fetch(fetched[load], phase, panel, number);
        }
    }

    // Calls f(eight, number) for each group of eight that this thread loads from a panel.
    template <class F> DEVICE void each_eight(int phase, int panel, F f) {
#pragma unroll(P::prefetched ? P::loads : 1)
        for (int load = 0; load < P::loads; ++load) {
            const int number = threadIdx.x + load * P::threads;
            if (number >= P::eights) break;
            if (load < P::prefetched) {
                f(fetched[load], number);
            } else {
                Eight eight;
                fetch(eight, phase, panel, number);
                f(eight, number);
            }
        }
    }

    // Stores a panel into shared memory: X times 2^-exponent, or X1. Returns the largest entry of X that this thread has loaded.
    DEVICE float store_panel(int phase, int panel, float16* there) {
        const Shift shift(exponent);
        const bool down = phase == 0 && p.tall;
        float largest = 0;
        each_eight(phase, panel, [&](const Eight& eight, int number) {
            if (phase == 0) {
                float values[8];
                floats_of(values, eight, p.dtype);
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    largest = fabsf(values[n]) > largest ? fabsf(values[n]) : largest;
                    values[n] = shift(values[n]) * unit;
                }
                store_planes<P::planes>(values, [&](int plane) { return in_panel(there, number, plane, down); });
            } else {
#pragma unroll
                for (int plane = 0; plane < P::planes; ++plane) {
                    const uint32* at = eight.at + 4 * plane;
                    *in_panel(there, number, plane, down) = {at[0], at[1], at[2], at[3]};
                }
            }
        });
        return largest;
    }

    // Stores eight sums of a panel of X1: into the workspace or, if `there` is set, over the resident panel of X.
    DEVICE void store_work(int panel, float16* there, int number, const float* sums, float scale) const {
        const Spot at = spot(number, false);
        float values[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) values[n] = scale * sums[at.line * P::pitch + 8 * at.word + n];
        store_planes<P::planes>(values, [&](int plane) {
            return there ? in_panel(there, number, plane, false) : work(panel) + plane * P::eights + number;
        });
    }
    // Stores eight sums of the result into the caller's array.
    DEVICE void store_result(int panel, int number, const float* sums, float scale) const {
        // For a tall matrix neighbouring lanes take neighbouring columns of X. Their sums are neighbours, so that reads meet no bank
        // conflicts, and each lane writes 32 contiguous bytes of floats.
        const Spot at = p.tall ? Spot{number % CHUNK, number / CHUNK} : spot(number, false);
        const int row = p.tall ? panel * CHUNK + at.line : at.line, col = (p.tall ? 0 : panel * CHUNK) + 8 * at.word;
        if (row >= p.rows || col >= p.cols) return;
        const float* from = sums + (p.tall ? 8 * at.word * P::pitch + at.line : at.line * P::pitch + 8 * at.word);
        const int step = p.tall ? P::pitch : 1;
        char* const to = result();
        finish_eight([&](int n) { return scale * from[n * step]; }, to, p.dtype, (long long)row * p.cols + col, p.cols - col,
                     whole_words(to, p.cols, p.dtype));
    }
    // Stores X times 2^-exponent and `factor` into the caller's array.
    DEVICE void rescale(float factor) const {
        const Shift shift(exponent);
        const long long size = (long long)p.rows * p.cols;
        char* const to = result();
        const bool aligned = whole_words(source, 8, p.dtype) && whole_words(to, 8, p.dtype);
#pragma unroll 2
        for (long long place = 8 * threadIdx.x; place < size; place += 8 * P::threads) {
            const int left = size - place < 8 ? int(size - place) : 8;
            if (left < 8 || !aligned) {
                auto value = [&](int n) { return shift(float_at(source, p.dtype, place + n)) * factor; };
                finish_eight(value, to, p.dtype, place, left, false);
                continue;
            }
            Eight eight;
            float values[8];
            load_eight(eight, source, p.dtype, place, 8, true);
            floats_of(values, eight, p.dtype);
            finish_eight([&](int n) { return shift(values[n]) * factor; }, to, p.dtype, place, 8, true);
        }
    }
};
