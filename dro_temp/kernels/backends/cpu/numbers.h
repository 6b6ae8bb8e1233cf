/* What the C files share. NaN stays NaN in all of it. */
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

/* An outcome that scores so far below its row's best cannot happen; IMPOSSIBLE_BELOW of passes.py, which says why. */
#define IMPOSSIBLE_BELOW 9e3f

static inline size least(size a, size b) { return a < b ? a : b; }

enum { LEAST_POWER = -125 };

static inline float least_power(float y) { return y < LEAST_POWER ? LEAST_POWER : y; }

/* 2^x for -125 <= x <= 0, to about two units in the last place: x = k + r, and a polynomial in r (Cephes' exp2f). */
static inline float power_above(float x) {
    /* 1.5 * 2^23 rounds to whole numbers; 127 more, and the sum's last bits are the exponent of 2^k. */
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

/* 2^y for y <= 0. Below -125 it is 0: an outcome that cannot happen must weigh nothing, however low its score. */
static inline float power_of_two(float y) { return y < LEAST_POWER ? 0.0f : power_above(least_power(y)); }

static inline float highest_of(const float *s, size m) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (size j = 0; j < m; j++) top = s[j] > top ? s[j] : top;
    return top;
}

#endif
