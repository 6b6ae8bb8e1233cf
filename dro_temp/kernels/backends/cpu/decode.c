/* TempNet over a frozen head's logits for one token: a few microseconds of arithmetic, which two dozen calls into a
 * tensor library would multiply.
 *
 * With the first layer folded into the head (see FrozenHead), a token costs one product [width d] instead of [width m]
 * and one read of the logits for their norm: 2.7 % of the head's own product at (d 768, 50,304 words), 2.2 % at (2,048,
 * 32,000), 1.7 % at (4,096, 32,000), 0.7 % at (2,048, 128,256), with cold caches (docs/streaming.md).
 */
#include "numbers.h"

enum { UNROLL = 4 /* rows of a matrix that are multiplied by the vector at once */ };

/* out = matrix vector, [rows d] times [d]. One sum waits for the latency of each addition; four overlap. */
static void multiply(const float *matrix, const float *vector, float *out, size rows, size d) {
    size k = 0;
    for (; k + UNROLL <= rows; k += UNROLL) {
        const float *a = matrix + k * d, *b = a + d, *c = b + d, *e = c + d;
        float p = 0, q = 0, r = 0, t = 0;
#pragma omp simd reduction(+ : p, q, r, t)
        for (size i = 0; i < d; i++) {
            p += a[i] * vector[i];
            q += b[i] * vector[i];
            r += c[i] * vector[i];
            t += e[i] * vector[i];
        }
        out[k] = p, out[k + 1] = q, out[k + 2] = r, out[k + 3] = t;
    }
    for (; k < rows; k++) {
        const float *a = matrix + k * d;
        float p = 0;
#pragma omp simd reduction(+ : p)
        for (size i = 0; i < d; i++) p += a[i] * vector[i];
        out[k] = p;
    }
}

/* Norm of s - centre over the scores that are at least `floor`, in double: a vocabulary is long. */
static float norm_about(const float *s, size m, float centre, float floor) {
    double sum = 0;
    for (size start = 0; start < m; start += 512) {
        const size end = start + 512 < m ? start + 512 : m;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (size j = start; j < end; j++) part += s[j] < floor ? 0 : (s[j] - centre) * (s[j] - centre);
        sum += part;
    }
    return (float)sqrt(sum);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* tau = lower + (upper - lower) sigmoid(raw), clamped since rounding may leave the bounds,
 * raw = readout . [(softmax(sharpness v) - 1/width) * v] + bias,  v = second x + second_bias,
 * x = sigmoid((projection q + offset - top ones) / |z - top| + first_bias);  top is 0, or max z if centred. Outcomes
 * that cannot happen are left out of the projection and the norm.
 *
 * One row: query [d], scores z [m], projection [width d], second [width width]; `scratch` has 2 width numbers.
 */
PUBLIC float decode(const float *query, const float *scores, const float *projection, const float *offset,
                    const float *ones, const float *first_bias, const float *second, const float *second_bias,
                    const float *readout, float *scratch, size d, size m, size width, int centred, float sharpness,
                    float bias, float lower, float upper) {
    const float highest_score = max_of(scores, m), top = centred ? highest_score : 0.0f;
    const float norm = norm_about(scores, m, top, highest_score - IMPOSSIBLE_BELOW);
    const float inverse_norm = 1.0f / (norm < 1e-12f ? 1e-12f : norm);
    float *x = scratch, *v = scratch + width, highest = -INFINITY;
    multiply(projection, query, x, width, d);
    for (size k = 0; k < width; k++) x[k] = sigmoid((x[k] + offset[k] - top * ones[k]) * inverse_norm + first_bias[k]);
    multiply(second, x, v, width, width);
    for (size k = 0; k < width; k++) {
        v[k] += second_bias[k];
        highest = v[k] > highest ? v[k] : highest;
    }
    double weight_sum = 0, weighted_sum = 0, plain_sum = 0;
    for (size k = 0; k < width; k++) {
        const double weight = expf((v[k] - highest) * sharpness), part = (double)readout[k] * v[k];
        weight_sum += weight, weighted_sum += weight * part, plain_sum += part;
    }
    const float raw = (float)(weighted_sum / weight_sum - plain_sum / (double)width) + bias;
    const float tau = lower + (upper - lower) * sigmoid(raw);
    return tau < lower ? lower : tau > upper ? upper : tau;
}
