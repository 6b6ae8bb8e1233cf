/* Products of bfloat16 factors, summed in float32, where the processor has instructions for it. PyTorch rounds such
 * sums to bfloat16: scores are then off by 0.4 in the exponent at temperatures of a few thousandths, and a gradient that
 * adds up blocks of rows is written and read once more.
 *
 * The instruction multiplies pairs of numbers that lie side by side: "pairs" below, of 32 bits. */
#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>

/* A tile of 8 x 48 sums takes 24 of the 32 registers. Columns are packed 48 at a time, 512 numbers deep: 48 KiB. */
enum { ROWS = 8, VECTORS = 3, LANES = 16, COLUMNS = VECTORS * LANES, PAIRS = 256, TURNED = 2 * LANES };

PUBLIC int multiplies_bfloat16(void) { return 1; }

static inline __mmask16 lanes(size count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* 16 vectors of 16 pairs, turned. */
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

/* The pair p of each of up to 48 keys side by side; zeros for keys that are not there. */
static void pack(const uint16_t *keys, size stride, size count, size pairs, __m512i *packed) {
    for (int v = 0; v < VECTORS; v++)
        for (size p = 0; p < pairs; p += LANES) {
            const __mmask16 deep = lanes(pairs - p);
            __m512i r[LANES];
            for (int j = 0; j < LANES; j++) {
                const size key = v * LANES + j;
                r[j] = key < count ? _mm512_maskz_loadu_epi32(deep, keys + key * stride + 2 * p)
                                   : _mm512_setzero_si512();
            }
            transpose(r);
            for (int j = 0; j < least(LANES, pairs - p); j++) packed[(p + j) * VECTORS + v] = r[j];
        }
}

/* Up to 8 rows times up to 48 packed columns. Row i has its pair p at left + i * row_step + p * pair_step. The number
 * of rows is known wherever this is inlined. */
__attribute__((always_inline)) static inline void tile(const uint16_t *left, size row_step, size pair_step,
                                                       const __m512i *packed, size pairs, const int rows,
                                                       float scale, int adds, float *out, size out_stride,
                                                       size columns) {
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
            const __mmask16 there = lanes(columns - v * LANES);
            float *to = out + i * out_stride + v * LANES;
            __m512 found = _mm512_mul_ps(sum[i][v], _mm512_set1_ps(scale));
            if (adds) found = _mm512_add_ps(found, _mm512_maskz_loadu_ps(there, to));
            _mm512_mask_storeu_ps(to, there, found);
        }
}

#define TILE(number)                                                                                               \
    case number:                                                                                                   \
        tile(left, row_step, pair_step, packed, pairs, number, scale, adds, out, out_stride, columns);             \
        break

static void tile_of(const uint16_t *left, size row_step, size pair_step, const __m512i *packed, size pairs, size rows,
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
        const size columns = least(COLUMNS, last - j);
        for (size start = 0; start < d / 2 || !start; start += PAIRS) {
            const size deep = least(PAIRS, d / 2 - start);
            const int adds = start > 0;
            pack(keys + j * key_stride + 2 * start, key_stride, columns, deep, packed);
            for (size i = 0; i < n; i += ROWS)
                tile_of(queries + i * query_stride + 2 * start, query_stride, 2, packed, deep, least(ROWS, n - i),
                        scale, adds, out + i * out_stride + j, out_stride, columns);
        }
    }
}

/* Up to 32 columns of two rows, as pairs: column j has its pair at to + 2 j. A last row without a partner gets zeros. */
static inline void pair_rows(const uint16_t *x, size stride, int both, size columns, uint16_t *to) {
    const __mmask32 there = columns >= TURNED ? 0xffffffffu : (__mmask32)((1u << columns) - 1);
    const __m512i a = _mm512_maskz_loadu_epi16(there, x);
    const __m512i b = both ? _mm512_maskz_loadu_epi16(there, x + stride) : _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
    /* Unpacking works on each 128 bits by itself. */
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(to + TURNED, _mm512_permutex2var_epi64(low, second, high));
}

/* How many numbers `turn` writes: panels of 48 columns. */
PUBLIC size turned_size(size n, size columns) { return (columns + COLUMNS - 1) / COLUMNS * COLUMNS * ((n + 1) / 2 * 2); }

/* Pairs of rows of x [n columns], panel by panel as a tile wants them. */
PUBLIC void turn(const uint16_t *x, size stride, size n, size columns, uint16_t *turned) {
    const size pairs = (n + 1) / 2;
    for (size c = 0; c < columns; c += COLUMNS) {
        uint16_t *panel = turned + c * 2 * pairs;
        for (size p = 0; p < pairs; p++) {
            const uint16_t *row = x + 2 * p * stride + c;
            const int both = 2 * p + 1 < n;
            uint16_t wide[4 * TURNED];
            pair_rows(row, stride, both, least(TURNED, columns - c), wide);
            if (columns - c > TURNED)
                pair_rows(row + TURNED, stride, both, least(TURNED, columns - c - TURNED), wide + 2 * TURNED);
            else
                memset(wide + 2 * TURNED, 0, 2 * TURNED * sizeof *wide);
            memcpy(panel + p * 2 * COLUMNS, wide, 2 * COLUMNS * sizeof *wide);
        }
    }
}

/* total[j, c] = sum_i weights[i, j] x[i, c], for the j from `first` to `last`, with x [n d] as `turn` left it; on top of
 * what is there, where it `adds`. */
PUBLIC void accumulate_bfloat16(const uint16_t *weights, size stride, size n, const uint16_t *turned, size first,
                            size last, size d, size adds, float *total, size total_stride) {
    const size pairs = (n + 1) / 2;
    uint16_t left[PAIRS * 2 * TURNED];
    for (size j = first; j < last; j += TURNED)
        for (size start = 0; start < pairs; start += PAIRS) {
            const size deep = least(PAIRS, pairs - start), columns = least(TURNED, last - j);
            for (size p = 0; p < deep; p++) {
                const size row = 2 * (start + p);
                pair_rows(weights + row * stride + j, stride, row + 1 < n, columns, left + p * 2 * TURNED);
            }
            for (size c = 0; c < d; c += COLUMNS) {
                const __m512i *packed = (const __m512i *)(const void *)(turned + (c * pairs + start * COLUMNS) * 2);
                for (size i = 0; i < columns; i += ROWS)
                    tile_of(left + 2 * i, 2, 2 * TURNED, packed, deep, least(ROWS, columns - i), 1.0f,
                            adds || start > 0, total + (j + i) * total_stride + c, total_stride,
                            least(COLUMNS, d - c));
            }
        }
}

#else

/* Whoever reads this zero calls none of the others, which are not there. */
PUBLIC int multiplies_bfloat16(void) { return 0; }

#endif
