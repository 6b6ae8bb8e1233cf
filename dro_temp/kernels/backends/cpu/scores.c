/* The passes over a block of float32 scores: each reads the block once or twice, and writes it at most once.
 * Memory is as slow as the arithmetic, so that sums alone read each number once.
 *
 * Rows of a block are `stride` numbers apart; the columns of a row lie side by side. Every function works on the
 * rows (or columns) from `first` to `last`, so that several threads may share a block. NaN stays NaN.
 */
#include "numbers.h"

enum { SUM = 1024 /* numbers summed in float32 before double takes over */, TILE = 512 /* columns in the L1 cache */ };

/* To the nearest bfloat16, ties to even. */
static inline uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Adds some scores' weights e^((s - max s) / tau), which it stores, and those times s - max s. */
static inline void sum_part(const float *s, float *stored, size n, float highest, float rate, double *sum,
                            double *moment) {
    float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (size j = 0; j < n; j++) {
        const float x = (s[j] - highest) * rate, weight = power_of_two(x);
        stored[j] = weight;
        a += weight;
        b += weight * least_power(x);
    }
    *sum += a, *moment += b / rate;
}

/* Weights of one row, their sum, and the mean of s - max s under them. They are stored in float32, or rounded to
 * bfloat16. */
__attribute__((always_inline)) static inline void softmax_row(const float *s, float *stored, uint16_t *narrow, size m,
                                                           float tau, float *top, float *total, float *excess) {
    const float highest = highest_of(s, m), rate = LOG2_E / tau;
    double sum = 0, moment = 0;
    for (size start = 0; start < m; start += SUM) {
        const size n = least(SUM, m - start);
        if (narrow) {
            float weights[SUM];
            sum_part(s + start, weights, n, highest, rate, &sum, &moment);
            for (size j = 0; j < n; j++) narrow[start + j] = rounded(weights[j]);
        } else {
            sum_part(s + start, stored + start, n, highest, rate, &sum, &moment);
        }
    }
    *top = highest, *total = (float)sum, *excess = (float)(moment / sum);
}

/* Weights in place of the scores, and their sums. */
PUBLIC void softmax_partials(float *scores, size stride, size first, size last, size m, const float *tau, float *top,
                 float *total, float *excess) {
    for (size i = first; i < last; i++)
        softmax_row(scores + i * stride, scores + i * stride, 0, m, tau[i], top + i, total + i, excess + i);
}

/* The same, the weights rounded to bfloat16, into [n m] of their own without gaps between rows. In place, in the first
 * half of each row's memory, they would be a strided matrix, and oneDNN's products on processors with AMX read such rows
 * up to the next multiple of 32 columns: what lies there may be NaN, and NaN times a padded zero is NaN. */
PUBLIC void softmax_partials_bfloat16(const float *scores, size stride, size first, size last, size m, const float *tau,
                          uint16_t *weights, float *top, float *total, float *excess) {
    for (size i = first; i < last; i++)
        softmax_row(scores + i * stride, 0, weights + i * m, m, tau[i], top + i, total + i, excess + i);
}

/* Of the numbers of a row that were read so far: the largest; their weights 2^x with x = rate (s - max s), added up; and
 * x times those. A weight that should be 0 may be 2^-125: in a sum that is at least 1 it is lost to rounding. */
typedef struct {
    float highest;
    double sum, moment;
} running;

/* Reads on, while the numbers are in the cache; adds the squared distances from `middle` of those from `floor` on, where
 * they are wanted. */
__attribute__((always_inline)) static inline void read_on(running *seen, const float *s, size n, float rate,
                                                          float highest, float middle, float floor, double *square) {
    if (highest > seen->highest) {
        if (seen->highest > -INFINITY) {
            const double drop = (double)(highest - seen->highest) * rate, decay = exp2(-drop);
            seen->moment = decay * (seen->moment - drop * seen->sum), seen->sum *= decay;
        }
        seen->highest = highest;
    }
    /* Before anything could happen every number is -inf, which weighs nothing, or NaN. */
    const float top = seen->highest > -INFINITY ? seen->highest : 0;
    float a = 0, b = 0, c = 0;
#pragma omp simd reduction(+ : a, b, c)
    for (size j = 0; j < n; j++) {
        const float x = least_power((s[j] - top) * rate), weight = power_above(x);
        a += weight;
        b += weight * x;
        if (square) c += s[j] < floor ? 0 : (s[j] - middle) * (s[j] - middle);
    }
    seen->sum += a, seen->moment += b;
    if (square) *square += c;
}

static inline void write_sums(const running *seen, float rate, float *top, float *total, float *excess) {
    const double nothing = seen->highest > -INFINITY ? 0 : NAN; /* where no outcome can happen */
    *top = seen->highest, *total = (float)(seen->sum + nothing), *excess = (float)(seen->moment / seen->sum / rate + nothing);
}

/* The same sums; the scores stay. */
PUBLIC void row_sums(const float *scores, size stride, size first, size last, size m, const float *tau, float *top,
                     float *total, float *excess) {
    for (size i = first; i < last; i++) {
        const float rate = LOG2_E / tau[i];
        running seen = {-INFINITY, 0, 0};
        for (size start = 0; start < m; start += SUM) {
            const float *s = scores + i * stride + start;
            const size n = least(SUM, m - start);
            read_on(&seen, s, n, rate, highest_of(s, n), 0, 0, 0);
        }
        write_sums(&seen, rate, top + i, total + i, excess + i);
    }
}

/* What a network may read of each row: the sums at temperature 1; mean and standard deviation of the scores of outcomes
 * that can happen, and their number. Which those are the largest score tells, for which a row is read once more. */
PUBLIC void profile(const float *scores, size stride, size first, size last, size m, float *top, float *total,
                    float *excess, float *mean, float *deviation, float *count) {
    for (size i = first; i < last; i++) {
        const float highest = highest_of(scores + i * stride, m), floor = highest - IMPOSSIBLE_BELOW;
        running seen = {-INFINITY, 0, 0};
        double centre = 0, square = 0, before = 0;
        for (size start = 0; start < m; start += SUM) {
            const float *s = scores + i * stride + start;
            const size n = least(SUM, m - start);
            float all = 0, inside = 0;
#pragma omp simd reduction(+ : all, inside)
            for (size j = 0; j < n; j++) {
                all += s[j] < floor ? 0 : s[j];
                inside += s[j] < floor ? 0 : 1;
            }
            const float middle = inside > 0 ? all / inside : (float)centre;
            read_on(&seen, s, n, LOG2_E, highest, middle, floor, &square);
            const double step = middle - centre, share = inside > 0 ? inside / (before + inside) : 0;
            square += step * step * before * share, centre += step * share, before += inside;
        }
        write_sums(&seen, LOG2_E, top + i, total + i, excess + i);
        mean[i] = (float)centre, deviation[i] = (float)sqrt(square / before), count[i] = (float)before;
    }
}

/* Add n rows to the running sums of columns `first` to `last`: largest score, weights, weights times scores. */
PUBLIC void column_sums(const float *scores, size stride, size first, size last, size n, const float *tau, float *top,
                        float *total, float *moment) {
    for (size start = first; start < last; start += TILE) {
        const size width = least(TILE, last - start);
        const float *block = scores + start;
        float highest[TILE], rate[TILE], sum[TILE], weighted[TILE];
        memcpy(highest, top + start, sizeof(float) * (size_t)width);
        for (size i = 0; i < n; i++) {
            const float *s = block + i * stride;
#pragma omp simd
            for (size j = 0; j < width; j++) highest[j] = s[j] > highest[j] ? s[j] : highest[j];
        }
#pragma omp simd
        for (size j = 0; j < width; j++) {
            rate[j] = LOG2_E / tau[start + j];
            const float decay = power_of_two((top[start + j] - highest[j]) * rate[j]);
            sum[j] = total[start + j] * decay;
            weighted[j] = moment[start + j] * decay;
        }
        for (size i = 0; i < n; i++) {
            const float *s = block + i * stride;
#pragma omp simd
            for (size j = 0; j < width; j++) {
                const float weight = power_of_two((s[j] - highest[j]) * rate[j]);
                sum[j] += weight;
                weighted[j] += weight * s[j];
            }
        }
        memcpy(top + start, highest, sizeof(float) * (size_t)width);
        memcpy(total + start, sum, sizeof(float) * (size_t)width);
        memcpy(moment + start, weighted, sizeof(float) * (size_t)width);
    }
}

/* Gradient with respect to the scores in their place: each row's and each column's share of its weight. */
PUBLIC void pair_logits_grad(float *scores, size stride, size first, size last, size m, const float *tau_rows,
                   const float *top_rows, const float *share_rows, const float *rate_columns,
                   const float *top_columns, const float *share_columns) {
    for (size i = first; i < last; i++) {
        float *s = scores + i * stride;
        const float rate = LOG2_E / tau_rows[i], top = top_rows[i], share = share_rows[i];
#pragma omp simd
        for (size j = 0; j < m; j++)
            s[j] = share * power_of_two((s[j] - top) * rate) +
                   share_columns[j] * power_of_two((s[j] - top_columns[j]) * rate_columns[j]);
    }
}
