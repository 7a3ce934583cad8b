/* A row of activations times a weight as packed.py stores it: for single rows, whose time is that of reading the weight.

   The row is written as 16-bit numbers with one step per block of 128 inputs, each in two bytes: 256 * high + low. Codes
   are made unsigned (code + 8, code + 128), which is what dot product instructions take; sums start with what that adds.
   Within a block everything is exact in 32 bits. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__AVX512VNNI__) && !defined(PORTABLE)
#define WIDE
#include <immintrin.h>
#endif

enum { BLOCK = 128, HALF = 64, TOP = 127 * 256 + 127, AHEAD = 4096 };

typedef struct {
  int8_t *high, *low; /* [columns]; of 4-bit codes the even inputs of a block come before the odd ones */
  int32_t *start;     /* [blocks] minus what unsigned codes add to the sum */
  float *steps;       /* [blocks] */
} Row;

static inline float number(uint32_t bits) {
  union { uint32_t bits; float number; } both = {bits};
  return both.number;
}

/* x in bfloat16: the upper half of a float's bits, by which sizes can be compared too. */
static void split(const uint16_t *x, ptrdiff_t blocks, int bits, Row row) {
  for (ptrdiff_t b = 0; b < blocks; b++, x += BLOCK) {
    uint16_t top = 0;
    for (int k = 0; k < BLOCK; k++) {
      uint16_t size = x[k] & 0x7fff;
      top = size > top ? size : top;
    }
    /* What is no finite number makes the answer none; of what is smaller than 1e-35 the inverse might be infinite. */
    float step = number((uint32_t)top << 16) / TOP, inverse = 0;
    row.steps[b] = top < 0x7f80 ? step : NAN;
    if (top < 0x7f80 && step > 1e-35f) inverse = 1 / step;
    int32_t values[BLOCK], total = 0;
    for (int k = 0; k < BLOCK; k++) {
      float scaled = top < 0x7f80 ? number((uint32_t)x[k] << 16) * inverse : 0;
      values[k] = (int32_t)rintf(scaled);
      total += values[k];
    }
    for (int k = 0; k < BLOCK; k++) {
      int32_t high = (values[k] + 128) >> 8;
      ptrdiff_t place = b * BLOCK + (bits == 4 ? k % 2 * HALF + k / 2 : k);
      row.high[place] = (int8_t)high;
      row.low[place] = (int8_t)(values[k] - high * 256);
    }
    row.start[b] = -(bits == 4 ? 8 : 128) * total;
  }
}

#ifdef WIDE
typedef __m512 Sum;

static inline Sum add(Sum sum, const uint8_t *codes, int bits, const int8_t *high, const int8_t *low, int32_t start,
                      float weight) {
  __m512i first = _mm512_loadu_si512(codes), second;
  if (bits == 4) {
    const __m512i mask = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(8);
    second = _mm512_ternarylogic_epi32(_mm512_srli_epi16(first, 4), mask, sign, 0x6a); /* (a & mask) ^ sign */
    first = _mm512_ternarylogic_epi32(first, mask, sign, 0x6a);
  } else {
    const __m512i sign = _mm512_set1_epi8(-128);
    second = _mm512_xor_si512(_mm512_loadu_si512(codes + HALF), sign);
    first = _mm512_xor_si512(first, sign);
  }
  __m512i large = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first, _mm512_loadu_si512(high));
  large = _mm512_dpbusd_epi32(large, second, _mm512_loadu_si512(high + HALF));
  __m512i small = _mm512_dpbusd_epi32(_mm512_maskz_set1_epi32(1, start), first, _mm512_loadu_si512(low));
  small = _mm512_dpbusd_epi32(small, second, _mm512_loadu_si512(low + HALF));
  __m512i both = _mm512_add_epi32(_mm512_slli_epi32(large, 8), small);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), _mm512_set1_ps(weight), sum);
}

static inline Sum zero(void) { return _mm512_setzero_ps(); }

static inline float reduce(Sum a, Sum b) { return _mm512_reduce_add_ps(_mm512_add_ps(a, b)); }

static inline void widen(const uint16_t *scales, ptrdiff_t count, float *out) {
  for (ptrdiff_t g = 0; g < count; g += 16) {
    __mmask16 rest = count - g < 16 ? (__mmask16)((1 << (count - g)) - 1) : (__mmask16)-1;
    _mm512_mask_storeu_ps(out + g, rest, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(rest, scales + g)));
  }
}
#else
typedef float Sum;

static inline Sum add(Sum sum, const uint8_t *codes, int bits, const int8_t *high, const int8_t *low, int32_t start,
                      float weight) {
  int32_t large = 0, small = start;
  if (bits == 4) {
    for (int k = 0; k < HALF; k++) large += (uint8_t)((codes[k] & 15) ^ 8) * high[k];
    for (int k = 0; k < HALF; k++) large += (uint8_t)((codes[k] >> 4) ^ 8) * high[HALF + k];
    for (int k = 0; k < HALF; k++) small += (uint8_t)((codes[k] & 15) ^ 8) * low[k];
    for (int k = 0; k < HALF; k++) small += (uint8_t)((codes[k] >> 4) ^ 8) * low[HALF + k];
  } else {
    for (int k = 0; k < BLOCK; k++) large += (uint8_t)(codes[k] ^ 128) * high[k];
    for (int k = 0; k < BLOCK; k++) small += (uint8_t)(codes[k] ^ 128) * low[k];
  }
  return sum + (float)(large * 256 + small) * weight;
}

static inline Sum zero(void) { return 0; }

static inline float reduce(Sum a, Sum b) { return a + b; }

/* fp16 to float without a type for it, which older compilers lack: exponents differ by 112. */
static inline void widen(const uint16_t *scales, ptrdiff_t count, float *out) {
  for (ptrdiff_t g = 0; g < count; g++) {
    float size = number((uint32_t)(scales[g] & 0x7fff) << 13) * 0x1p112f;
    out[g] = scales[g] & 0x8000 ? -size : size;
  }
}
#endif

static inline __attribute__((always_inline)) void outputs(const Row row, const uint8_t *codes, const uint16_t *scales,
                                                          const int bits, ptrdiff_t count, ptrdiff_t blocks,
                                                          ptrdiff_t groups, float *out, int threads) {
  const ptrdiff_t bytes = BLOCK * bits / 8, per_group = blocks / groups;
  (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
  for (ptrdiff_t n = 0; n < count; n++) {
    const uint8_t *place = codes + n * blocks * bytes;
    float wide[groups], weights[blocks];
    widen(scales + n * groups, groups, wide);
    if (per_group == 1)
      for (ptrdiff_t b = 0; b < blocks; b++) weights[b] = wide[b] * row.steps[b];
    else
      for (ptrdiff_t b = 0; b < blocks; b++) weights[b] = wide[b / per_group] * row.steps[b];
    Sum sums[2] = {zero(), zero()}; /* of two chains of additions neither waits for the other */
    ptrdiff_t b = 0;
    for (; b + 1 < blocks; b += 2) {
      for (ptrdiff_t line = 0; line < 2 * bytes; line += 64) __builtin_prefetch(place + b * bytes + AHEAD + line);
      for (int i = 0; i < 2; i++) {
        ptrdiff_t j = b + i;
        sums[i] = add(sums[i], place + j * bytes, bits, row.high + j * BLOCK, row.low + j * BLOCK, row.start[j],
                      weights[j]);
      }
    }
    if (b < blocks)
      sums[0] = add(sums[0], place + b * bytes, bits, row.high + b * BLOCK, row.low + b * BLOCK, row.start[b],
                    weights[b]);
    out[n] = reduce(sums[0], sums[1]);
  }
}

/* x [rows, columns] bfloat16, codes [count, columns * bits / 8], scales [count, groups] fp16, out [rows, count]; columns
   are a multiple of 128 * groups. Nonzero where there is no memory for one row. */
int multiply(const uint16_t *x, ptrdiff_t rows, const uint8_t *codes, const uint16_t *scales, int bits, ptrdiff_t count,
             ptrdiff_t columns, ptrdiff_t groups, float *out, int threads) {
  const ptrdiff_t blocks = columns / BLOCK;
  char *memory = malloc(blocks * (sizeof(float) + sizeof(int32_t) + 2 * BLOCK));
  if (memory == NULL) return 1;
  Row row = {.steps = (float *)memory, .start = (int32_t *)memory + blocks};
  row.high = (int8_t *)(row.start + blocks);
  row.low = row.high + columns;
  for (ptrdiff_t r = 0; r < rows; r++, x += columns, out += count) {
    split(x, blocks, bits, row);
    if (bits == 4)
      outputs(row, codes, scales, 4, count, blocks, groups, out, threads);
    else
      outputs(row, codes, scales, 8, count, blocks, groups, out, threads);
  }
  free(memory);
  return 0;
}
