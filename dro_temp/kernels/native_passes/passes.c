/* The passes over a block of float32 scores: each reads the block once or twice, and writes it at most once.
 *
 * Rows of a block are `stride` numbers apart; the columns of a row lie side by side. Every function works on the
 * rows (or columns) from `first` to `last`, so that several threads may share a block. NaN stays NaN.
 */
#include "numbers.h"

enum { SUM = 512 /* numbers summed in float32 before double takes over */, TILE = 512 /* columns in the L1 cache */ };

/* To the nearest bfloat16, ties to even. */
static inline uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Adds some scores' weights e^((s - max s) / tau), and those times s - max s. The weights are stored where there is room
 * for them; each caller knows whether, and so must the compiler, or it does without vectors. Where they are not, one that
 * should be 0 may be 2^-125: in a sum that is at least 1 nobody can tell. */
__attribute__((always_inline)) static inline void sum_part(const float *s, float *stored, size n, float highest,
                                                           float rate, double *sum, double *moment) {
    float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (size j = 0; j < n; j++) {
        const float y = (s[j] - highest) * rate, x = least_power(y);
        const float weight = stored ? power_of_two(y) : power_above(x);
        if (stored) stored[j] = weight;
        a += weight;
        b += weight * x;
    }
    *sum += a, *moment += b / rate;
}

/* Sums of one row, and the mean of s - max s under its weights. These are stored nowhere; in float32; or rounded to
 * bfloat16, which may be in place of the scores: what was not read yet is not written to. */
__attribute__((always_inline)) static inline void sum_row(const float *s, float *stored, uint16_t *narrow, size m,
                                                          float tau, float *top, float *total, float *excess) {
    const float highest = highest_of(s, m), rate = LOG2_E / tau;
    double sum = 0, moment = 0;
    for (size start = 0; start < m; start += SUM) {
        const size n = least(SUM, m - start);
        if (narrow) {
            float weights[SUM];
            sum_part(s + start, weights, n, highest, rate, &sum, &moment);
            for (size j = 0; j < n; j++) narrow[start + j] = rounded(weights[j]);
        } else if (stored) {
            sum_part(s + start, stored + start, n, highest, rate, &sum, &moment);
        } else {
            sum_part(s + start, 0, n, highest, rate, &sum, &moment);
        }
    }
    *top = highest, *total = (float)sum, *excess = (float)(moment / sum);
}

/* Weights in place of the scores, and their sums. */
PUBLIC void tilt(float *scores, size stride, size first, size last, size m, const float *tau, float *top,
                 float *total, float *excess) {
    for (size i = first; i < last; i++)
        sum_row(scores + i * stride, scores + i * stride, 0, m, tau[i], top + i, total + i, excess + i);
}

/* The same, the weights rounded to bfloat16: the first half of each row's memory. */
PUBLIC void tilt_bfloat16(float *scores, size stride, size first, size last, size m, const float *tau, float *top,
                          float *total, float *excess) {
    for (size i = first; i < last; i++) {
        float *s = scores + i * stride;
        sum_row(s, 0, (uint16_t *)(void *)s, m, tau[i], top + i, total + i, excess + i);
    }
}

/* The same sums; the scores stay. */
PUBLIC void sum_rows(const float *scores, size stride, size first, size last, size m, const float *tau, float *top,
                     float *total, float *excess) {
    for (size i = first; i < last; i++)
        sum_row(scores + i * stride, 0, 0, m, tau[i], top + i, total + i, excess + i);
}

/* What a network may read of each row: the sums at temperature 1, and mean and standard deviation of the scores. */
PUBLIC void profile(const float *scores, size stride, size first, size last, size m, float *top, float *total,
                    float *excess, float *mean, float *deviation) {
    for (size i = first; i < last; i++) {
        const float *s = scores + i * stride;
        float highest = -INFINITY;
        double all = 0, sum = 0, moment = 0, square = 0;
        for (size start = 0; start < m; start += SUM) {
            const size end = least(start + SUM, m);
            float a = 0;
#pragma omp simd reduction(max : highest) reduction(+ : a)
            for (size j = start; j < end; j++) {
                highest = s[j] > highest ? s[j] : highest;
                a += s[j];
            }
            all += a;
        }
        const float centre = (float)(all / (double)m);
        for (size start = 0; start < m; start += SUM) {
            const size end = least(start + SUM, m);
            float a = 0, b = 0, c = 0;
#pragma omp simd reduction(+ : a, b, c)
            for (size j = start; j < end; j++) {
                const float x = least_power((s[j] - highest) * LOG2_E), weight = power_above(x);
                a += weight;
                b += weight * x;
                c += (s[j] - centre) * (s[j] - centre);
            }
            sum += a, moment += b / LOG2_E, square += c;
        }
        top[i] = highest, total[i] = (float)sum, excess[i] = (float)(moment / sum);
        mean[i] = centre, deviation[i] = (float)sqrt(square / (double)m);
    }
}

/* Add n rows to the running sums of columns `first` to `last`: largest score, weights, weights times scores. */
PUBLIC void sum_columns(const float *scores, size stride, size first, size last, size n, const float *tau, float *top,
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
PUBLIC void couple(float *scores, size stride, size first, size last, size m, const float *tau_rows,
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
