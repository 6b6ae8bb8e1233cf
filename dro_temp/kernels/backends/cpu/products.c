/* Products of bfloat16 factors, summed in float32, for CPUs with AVX512-BF16.
 *
 *     score_bfloat16       out[i, j] = scale * q_i . k_j            [n d] x [m d] -> [n m]
 *     accumulate_bfloat16  total[j, c] += sum_i w[i, j] x[i, c]     [n m] x [n d] -> [m d]
 *
 * PyTorch's products round such sums to bfloat16: scores are then off by 0.4 in the exponent at temperatures of a few
 * thousandths, and a gradient that is a sum over blocks of rows is written and read once more.
 *
 * The instruction multiplies pairs of adjacent numbers, 32 bits ("pairs" below), and adds both products to a float32
 * lane. A tile is 8 rows by 48 columns: 24 accumulators of the 32 registers, 3 for the packed columns, 1 for the
 * broadcast row. Columns are packed 256 pairs deep, 48 KiB, and reused for all rows; accumulate_bfloat16 packs x once
 * for all threads.
 *
 * Time with TempNet over that of the same in float32 (one thread of an AMD EPYC with AVX-512, torch 2.15, 2026-11-25):
 * 0.58 [0.57, 0.61] at 2,048 x 512 x 32,000, 0.57 [0.57, 0.57] at 4,096 x 768 x 50,304, 0.63 [0.60, 0.66] at
 * 2,048 x 1,024 x 128,256; over three bfloat16 products of the library 1.47, 1.24 and 1.59. Not reached: 1.3 at all
 * sizes. TempNet's first layer stays in float32 on its way into the head and out of it: a fifth of the time at 2,048
 * tokens. */
#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>

enum { ROWS = 8, VECTORS = 3, LANES = 16, COLUMNS = VECTORS * LANES, PAIRS = 256, PANEL = 2 * LANES };

PUBLIC int multiplies_bfloat16(void) { return 1; }

static inline __mmask16 lanes(size count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* Transpose 16 vectors of 16 pairs. */
static inline void transpose(__m512i r[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* Pack up to 48 keys: pair p of each, adjacent, [pairs 48]; zeros for missing keys. */
static void pack(const uint16_t *keys, size stride, size count, size pairs, __m512i *packed) {
    for (int v = 0; v < VECTORS; v++)
        for (size p = 0; p < pairs; p += LANES) {
            const __mmask16 depth = lanes(pairs - p);
            __m512i r[LANES];
            for (int j = 0; j < LANES; j++) {
                const size key = v * LANES + j;
                r[j] =
                    key < count ? _mm512_maskz_loadu_epi32(depth, keys + key * stride + 2 * p) : _mm512_setzero_si512();
            }
            transpose(r);
            for (int j = 0; j < min_size(LANES, pairs - p); j++) packed[(p + j) * VECTORS + v] = r[j];
        }
}

/* Up to 8 rows times up to 48 packed columns. Pair p of row i is at left + i * row_step + p * pair_step. `rows` is a
 * constant wherever this is inlined, so that the accumulators are registers. */
__attribute__((always_inline)) static inline void tile(const uint16_t *left, size row_step, size pair_step,
                                                       const __m512i *packed, size pairs, const int rows, float scale,
                                                       int adds, float *out, size out_stride, size columns) {
    __m512 sum[ROWS][VECTORS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_setzero_ps();
    for (size p = 0; p < pairs; p++) {
        __m512bh right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = (__m512bh)_mm512_loadu_si512(packed + p * VECTORS + v);
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, left + i * row_step + p * pair_step, sizeof pair);
            const __m512bh all = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], all, right[v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VECTORS; v++) {
            const __mmask16 inside = lanes(columns - v * LANES);
            float *to = out + i * out_stride + v * LANES;
            __m512 value = _mm512_mul_ps(sum[i][v], _mm512_set1_ps(scale));
            if (adds) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(inside, to));
            _mm512_mask_storeu_ps(to, inside, value);
        }
}

#define TILE(number)                                                                                                   \
    case number:                                                                                                       \
        tile(left, row_step, pair_step, packed, pairs, number, scale, adds, out, out_stride, columns);                 \
        break

static void tile_for(const uint16_t *left, size row_step, size pair_step, const __m512i *packed, size pairs, size rows,
                     float scale, int adds, float *out, size out_stride, size columns) {
    switch (rows) {
        TILE(1);
        TILE(2);
        TILE(3);
        TILE(4);
        TILE(5);
        TILE(6);
        TILE(7);
        TILE(8);
    }
}

/* out[i, j] = scale * queries[i] . keys[j] for the keys from `first` to `last`; d is even. */
PUBLIC void score_bfloat16(const uint16_t *queries, size query_stride, size n, const uint16_t *keys, size key_stride,
                           size first, size last, size d, float scale, float *out, size out_stride) {
    __m512i packed[PAIRS * VECTORS];
    for (size j = first; j < last; j += COLUMNS) {
        const size columns = min_size(COLUMNS, last - j);
        for (size start = 0; start < d / 2 || !start; start += PAIRS) {
            const size depth = min_size(PAIRS, d / 2 - start);
            const int adds = start > 0;
            pack(keys + j * key_stride + 2 * start, key_stride, columns, depth, packed);
            for (size i = 0; i < n; i += ROWS)
                tile_for(queries + i * query_stride + 2 * start, query_stride, 2, packed, depth, min_size(ROWS, n - i),
                         scale, adds, out + i * out_stride + j, out_stride, columns);
        }
    }
}

/* Up to 32 columns of two rows as pairs: that of column j is at to + 2 j. A last row without a partner gets zeros. */
static inline void pair_rows(const uint16_t *x, size stride, int both, size columns, uint16_t *to) {
    const __mmask32 inside = columns >= PANEL ? 0xffffffffu : (__mmask32)((1u << columns) - 1);
    const __m512i a = _mm512_maskz_loadu_epi16(inside, x);
    const __m512i b = both ? _mm512_maskz_loadu_epi16(inside, x + stride) : _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
    /* Unpacking works within each 128 bits. */
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(to + PANEL, _mm512_permutex2var_epi64(low, second, high));
}

/* How many numbers `pack_rows` writes: panels of 48 columns. */
PUBLIC size packed_size(size n, size columns) {
    return (columns + COLUMNS - 1) / COLUMNS * COLUMNS * ((n + 1) / 2 * 2);
}

/* Pairs of rows of x, [n columns], panel by panel in the layout that a tile reads. */
PUBLIC void pack_rows(const uint16_t *x, size stride, size n, size columns, uint16_t *packed_rows) {
    const size pairs = (n + 1) / 2;
    for (size c = 0; c < columns; c += COLUMNS) {
        uint16_t *panel = packed_rows + c * 2 * pairs;
        for (size p = 0; p < pairs; p++) {
            const uint16_t *row = x + 2 * p * stride + c;
            const int both = 2 * p + 1 < n;
            uint16_t pair_buffer[4 * PANEL];
            pair_rows(row, stride, both, min_size(PANEL, columns - c), pair_buffer);
            if (columns - c > PANEL)
                pair_rows(row + PANEL, stride, both, min_size(PANEL, columns - c - PANEL), pair_buffer + 2 * PANEL);
            else
                memset(pair_buffer + 2 * PANEL, 0, 2 * PANEL * sizeof *pair_buffer);
            memcpy(panel + p * 2 * COLUMNS, pair_buffer, 2 * COLUMNS * sizeof *pair_buffer);
        }
    }
}

/* total[j, c] = sum_i weights[i, j] x[i, c] for the j from `first` to `last`, with x [n d] packed by `pack_rows`; added
 * to `total` if `adds`. */
PUBLIC void accumulate_bfloat16(const uint16_t *weights, size stride, size n, const uint16_t *packed_rows, size first,
                                size last, size d, size adds, float *total, size total_stride) {
    const size pairs = (n + 1) / 2;
    uint16_t left[PAIRS * 2 * PANEL];
    for (size j = first; j < last; j += PANEL)
        for (size start = 0; start < pairs; start += PAIRS) {
            const size depth = min_size(PAIRS, pairs - start), columns = min_size(PANEL, last - j);
            for (size p = 0; p < depth; p++) {
                const size row = 2 * (start + p);
                pair_rows(weights + row * stride + j, stride, row + 1 < n, columns, left + p * 2 * PANEL);
            }
            for (size c = 0; c < d; c += COLUMNS) {
                const __m512i *packed =
                    (const __m512i *)(const void *)(packed_rows + (c * pairs + start * COLUMNS) * 2);
                for (size i = 0; i < columns; i += ROWS)
                    tile_for(left + 2 * i, 2, 2 * PANEL, packed, depth, min_size(ROWS, columns - i), 1.0f,
                             adds || start > 0, total + (j + i) * total_stride + c, total_stride,
                             min_size(COLUMNS, d - c));
            }
        }
}

#else

/* Callers check this first: the other functions are not compiled. */
PUBLIC int multiplies_bfloat16(void) { return 0; }

#endif
