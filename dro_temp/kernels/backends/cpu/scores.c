/* Passes over a block of float32 scores, [rows m]: each reads the block once or twice, and writes it at most once.
 *
 *     softmax_partials           weights in place of the scores, row sums        2 reads (max, then weights), 1 write
 *     softmax_partials_bfloat16  weights in a matrix of their own, row sums      2 reads, 1 write of half the size
 *     row_sums                   row sums alone                                  1 read
 *     profile                    row sums at temperature 1, mean, deviation      2 reads
 *     column_sums                running sums of columns                         2 reads of a tile in the L1 cache
 *     pair_logits_grad           gradient in place of the scores                 1 read, 1 write
 *
 * They take a fifth of the time of PyTorch's elementwise calls. Why they look as they do:
 * - Memory is as slow as the arithmetic. Sums alone therefore read each score once, with a running maximum that is
 * updated once per chunk; a rescaling per score would cost an exponential each.
 * - Exponentials are powers of two by a polynomial (numbers.h): a quarter less work than base e.
 * - A chunk of 1024 is summed in float32, in vector lanes; chunks are added in double, since a vocabulary is long.
 * - Where weights are not stored, one that should be 0 may be 2^-125, which saves a comparison per score: in a sum that
 * is at least 1 it is lost to rounding. Stored weights need the exact 0.
 * - bfloat16 weights in the first half of each row's own memory were tried: see softmax_partials_bfloat16.
 *
 * Rows of a block are `stride` numbers apart; the columns of a row are contiguous. Every function works on the rows (or
 * columns) from `first` to `last`, so that several threads may share a block. NaN stays NaN.
 */
#include "numbers.h"

enum {
    CHUNK = 1024 /* numbers summed in float32 before double takes over */,
    TILE = 512 /* columns in the L1 cache */
};

/* Round to the nearest bfloat16, ties to even. */
static inline uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Stores the weights e^((s - max s) / tau) of n scores; adds them to `sum`, and weight times (s - max s) to `moment`.
 */
static inline void weigh_chunk(const float *s, float *weights_out, size n, float highest, float rate, double *sum,
                               double *moment) {
    float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (size j = 0; j < n; j++) {
        const float x = (s[j] - highest) * rate, weight = exp2_or_zero(x);
        weights_out[j] = weight;
        a += weight;
        b += weight * clamp_exponent(x);
    }
    *sum += a, *moment += b / rate;
}

/* Weights of one row, their sum, and the mean of s - max s under them. Weights are stored in float32, or in bfloat16 if
 * there is a `bf16_out`. */
__attribute__((always_inline)) static inline void softmax_row(const float *s, float *weights_out, uint16_t *bf16_out,
                                                              size m, float tau, float *row_max, float *sum_exp,
                                                              float *mean_excess) {
    const float highest = max_of(s, m), rate = LOG2_E / tau;
    double sum = 0, moment = 0;
    for (size start = 0; start < m; start += CHUNK) {
        const size n = min_size(CHUNK, m - start);
        if (bf16_out) {
            float weights[CHUNK];
            weigh_chunk(s + start, weights, n, highest, rate, &sum, &moment);
            for (size j = 0; j < n; j++) bf16_out[start + j] = to_bfloat16(weights[j]);
        } else {
            weigh_chunk(s + start, weights_out + start, n, highest, rate, &sum, &moment);
        }
    }
    *row_max = highest, *sum_exp = (float)sum, *mean_excess = (float)(moment / sum);
}

/* Weights in place of the scores, [rows m], and row sums, [rows]. */
PUBLIC void softmax_partials(float *scores, size stride, size first, size last, size m, const float *tau,
                             float *row_max, float *sum_exp, float *mean_excess) {
    for (size i = first; i < last; i++)
        softmax_row(scores + i * stride, scores + i * stride, 0, m, tau[i], row_max + i, sum_exp + i, mean_excess + i);
}

/* The same with weights rounded to bfloat16, in a contiguous matrix of their own, [rows m]. In place, in the first half
 * of each row's memory, they were a strided matrix, and oneDNN's products on CPUs with AMX read such rows up to the
 * next multiple of 32 columns: the memory there may hold NaN, and NaN times a padded zero is NaN. */
PUBLIC void softmax_partials_bfloat16(const float *scores, size stride, size first, size last, size m, const float *tau,
                                      uint16_t *weights, float *row_max, float *sum_exp, float *mean_excess) {
    for (size i = first; i < last; i++)
        softmax_row(scores + i * stride, 0, weights + i * m, m, tau[i], row_max + i, sum_exp + i, mean_excess + i);
}

/* Of the part of a row that was read so far: the maximum, the sum of weights 2^x with x = rate (s - max s), and the sum
 * of x times the weights. */
typedef struct {
    float highest;
    double sum, moment;
} running_sums;

/* Adds a chunk that is in the cache, whose maximum is `highest`. If there is a `square`, adds to it the squared
 * distances from `middle` of the scores that are at least `floor`. */
__attribute__((always_inline)) static inline void add_chunk(running_sums *sums, const float *s, size n, float rate,
                                                            float highest, float middle, float floor, double *square) {
    if (highest > sums->highest) {
        if (sums->highest > -INFINITY) {
            const double drop = (double)(highest - sums->highest) * rate, decay = exp2(-drop);
            sums->moment = decay * (sums->moment - drop * sums->sum), sums->sum *= decay;
        }
        sums->highest = highest;
    }
    /* While the maximum is -inf every score so far is -inf, of weight 0, or NaN. */
    const float row_max = sums->highest > -INFINITY ? sums->highest : 0;
    float a = 0, b = 0, c = 0;
#pragma omp simd reduction(+ : a, b, c)
    for (size j = 0; j < n; j++) {
        const float x = clamp_exponent((s[j] - row_max) * rate), weight = exp2_above_min(x);
        a += weight;
        b += weight * x;
        if (square) c += s[j] < floor ? 0 : (s[j] - middle) * (s[j] - middle);
    }
    sums->sum += a, sums->moment += b;
    if (square) *square += c;
}

static inline void write_sums(const running_sums *sums, float rate, float *row_max, float *sum_exp,
                              float *mean_excess) {
    const double nan_if_empty = sums->highest > -INFINITY ? 0 : NAN; /* no outcome can happen */
    *row_max = sums->highest, *sum_exp = (float)(sums->sum + nan_if_empty);
    *mean_excess = (float)(sums->moment / sums->sum / rate + nan_if_empty);
}

/* Row sums, [rows]; the scores stay. */
PUBLIC void row_sums(const float *scores, size stride, size first, size last, size m, const float *tau, float *row_max,
                     float *sum_exp, float *mean_excess) {
    for (size i = first; i < last; i++) {
        const float rate = LOG2_E / tau[i];
        running_sums sums = {-INFINITY, 0, 0};
        for (size start = 0; start < m; start += CHUNK) {
            const float *s = scores + i * stride + start;
            const size n = min_size(CHUNK, m - start);
            add_chunk(&sums, s, n, rate, max_of(s, n), 0, 0, 0);
        }
        write_sums(&sums, rate, row_max + i, sum_exp + i, mean_excess + i);
    }
}

/* Inputs of a temperature network, [rows] each: row sums at temperature 1; mean, standard deviation and number of the
 * scores of outcomes that can happen. The maximum decides which those are, so a row is read twice. Means and squares of
 * chunks are merged as in Chan, Golub and LeVeque: scores may lie far from zero. */
PUBLIC void profile(const float *scores, size stride, size first, size last, size m, float *row_max, float *sum_exp,
                    float *mean_excess, float *mean, float *deviation, float *count) {
    for (size i = first; i < last; i++) {
        const float highest = max_of(scores + i * stride, m), floor = highest - IMPOSSIBLE_BELOW;
        running_sums sums = {-INFINITY, 0, 0};
        double centre = 0, square = 0, before = 0;
        for (size start = 0; start < m; start += CHUNK) {
            const float *s = scores + i * stride + start;
            const size n = min_size(CHUNK, m - start);
            float all = 0, inside = 0;
#pragma omp simd reduction(+ : all, inside)
            for (size j = 0; j < n; j++) {
                all += s[j] < floor ? 0 : s[j];
                inside += s[j] < floor ? 0 : 1;
            }
            const float middle = inside > 0 ? all / inside : (float)centre;
            add_chunk(&sums, s, n, LOG2_E, highest, middle, floor, &square);
            const double step = middle - centre, share = inside > 0 ? inside / (before + inside) : 0;
            square += step * step * before * share, centre += step * share, before += inside;
        }
        write_sums(&sums, LOG2_E, row_max + i, sum_exp + i, mean_excess + i);
        mean[i] = (float)centre, deviation[i] = (float)sqrt(square / before), count[i] = (float)before;
    }
}

/* Add n rows to the running sums, [m], of columns `first` to `last`: maximum, weights, weights times scores. */
PUBLIC void column_sums(const float *scores, size stride, size first, size last, size n, const float *tau,
                        float *column_max, float *sum_exp, float *moment) {
    for (size start = first; start < last; start += TILE) {
        const size width = min_size(TILE, last - start);
        const float *block = scores + start;
        float highest[TILE], rate[TILE], sum[TILE], weighted[TILE];
        memcpy(highest, column_max + start, sizeof(float) * (size_t)width);
        for (size i = 0; i < n; i++) {
            const float *s = block + i * stride;
#pragma omp simd
            for (size j = 0; j < width; j++) highest[j] = s[j] > highest[j] ? s[j] : highest[j];
        }
#pragma omp simd
        for (size j = 0; j < width; j++) {
            rate[j] = LOG2_E / tau[start + j];
            const float decay = exp2_or_zero((column_max[start + j] - highest[j]) * rate[j]);
            sum[j] = sum_exp[start + j] * decay;
            weighted[j] = moment[start + j] * decay;
        }
        for (size i = 0; i < n; i++) {
            const float *s = block + i * stride;
#pragma omp simd
            for (size j = 0; j < width; j++) {
                const float weight = exp2_or_zero((s[j] - highest[j]) * rate[j]);
                sum[j] += weight;
                weighted[j] += weight * s[j];
            }
        }
        memcpy(column_max + start, highest, sizeof(float) * (size_t)width);
        memcpy(sum_exp + start, sum, sizeof(float) * (size_t)width);
        memcpy(moment + start, weighted, sizeof(float) * (size_t)width);
    }
}

/* G_ij = share_i e^((s_ij - max_i) / tau_i) + share_j e^((s_ij - max_j) / tau_j), in place of the scores, [rows m]. */
PUBLIC void pair_logits_grad(float *scores, size stride, size first, size last, size m, const float *tau_rows,
                             const float *top_rows, const float *share_rows, const float *rate_columns,
                             const float *top_columns, const float *share_columns) {
    for (size i = first; i < last; i++) {
        float *s = scores + i * stride;
        const float rate = LOG2_E / tau_rows[i], row_max = top_rows[i], share = share_rows[i];
#pragma omp simd
        for (size j = 0; j < m; j++)
            s[j] = share * exp2_or_zero((s[j] - row_max) * rate) +
                   share_columns[j] * exp2_or_zero((s[j] - top_columns[j]) * rate_columns[j]);
    }
}
