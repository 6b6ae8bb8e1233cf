/* What the C files share. NaN stays NaN in all of it. */
#ifndef DRO_TEMP_NUMBERS_H
#define DRO_TEMP_NUMBERS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

typedef int64_t size;

/* e^x for x <= 0, to about one unit in the last place: x = k log 2 + r, and a polynomial in r (Cephes' expf).
 * Below -87 it is 0: an outcome that cannot happen must weigh nothing, however low its score. */
static inline float exponential(float x) {
    const float y = x < -87.0f ? -87.0f : x;
    const float shifted = y * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to whole numbers */
    const float k = shifted - 12582912.0f;
    float r = y - k * 0.693359375f;
    r -= k * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (int32_t)((uint32_t)(bits + 127) << 23); /* 2^k */
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}

/* -inf becomes finite: an outcome that cannot happen weighs 0, and 0 times -inf is NaN. */
static inline float finite(float x) { return x < -FLT_MAX ? -FLT_MAX : x; }

static inline float highest_of(const float *s, size m) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (size j = 0; j < m; j++) top = s[j] > top ? s[j] : top;
    return top;
}

#endif
