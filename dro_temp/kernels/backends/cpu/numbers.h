/* Shared by the C files. NaN stays NaN throughout. */
#ifndef DRO_TEMP_NUMBERS_H
#define DRO_TEMP_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

typedef int64_t size;

#define LOG2_E 1.44269504f

/* An outcome that scores so far below its row's maximum cannot happen; functional/statistics.py has the same number and
 * the reason. */
#define IMPOSSIBLE_BELOW 9e3f

static inline size min_size(size a, size b) { return a < b ? a : b; }

enum { MIN_EXPONENT = -125 };

static inline float clamp_exponent(float y) { return y < MIN_EXPONENT ? MIN_EXPONENT : y; }

/* 2^x for -125 <= x <= 0, to about two units in the last place: x = k + r, and a polynomial in r (Cephes' exp2f). Base
 * two instead of e saves a quarter of the work of these passes. */
static inline float exp2_above_min(float x) {
    /* Adding 1.5 * 2^23 rounds to a whole number; with 127 more, the sum's last bits are the exponent of 2^k. */
    const float shifted = x + 12583039.0f;
    const float r = x - (shifted - 12583039.0f);
    float p = 1.535336188319500e-4f;
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* 2^y for y <= 0. Below -125 it is 0: an outcome that cannot happen must have weight 0, however low its score. */
static inline float exp2_or_zero(float y) { return y < MIN_EXPONENT ? 0.0f : exp2_above_min(clamp_exponent(y)); }

static inline float max_of(const float *s, size m) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (size j = 0; j < m; j++) top = s[j] > top ? s[j] : top;
    return top;
}

#endif
