/* The element-wise part of blockwise gated attention, row by row in float32: what lies between two matrix products.

   Formulas: operator.py. Noise: noise.py, bit for bit. A block is `rows` queries of every head against `columns` keys;
   its scores lie as (heads of key, rows * group, columns) with the query heads of one key head side by side. Plain C:
   the compiler makes vectors of the loops, on any processor. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef struct {
  float *scores;              /* (count, rows * group, columns): q . k, becomes the gated weights */
  float *gradients;           /* the same: do . v, becomes d scores; backward only */
  int64_t first_head, count;  /* of the batch * kv_heads key heads, those in this block */
  int64_t kv_heads, group, queries;
  int64_t first_query, rows, first_key, columns;
  const int32_t *start, *stop; /* (batch or 1, queries) */
  int64_t mask_stride;         /* queries, or 0 where one mask serves the batch */
  const float *cutoff;         /* (kv_heads * group) */
  const float *offset;         /* (batch * kv_heads, keys), or NULL */
  int64_t keys;
  const int64_t *seeds;        /* (batch), or NULL for deterministic gates */
  const float *sharpness;      /* one number */
  float scaling, softcap;
  int32_t normalised, renormalise;
  float *lse, *mass, *expected, *opened; /* (batch * kv_heads, queries * group) */
  const float *delta;                    /* the same; do . o */
  const float *d_expected;               /* (batch, kv_heads * group) */
  float *gate_gradient;                  /* like lse: row sums of c */
  float *key_gradient;                   /* like scores: c; where there is an offset */
} Block;

/* Relative error 2e-7 (Cephes' polynomial). Clamped where sums and quotients of results stay normal; NaN stays NaN. */
INLINE float exponential(float x) {
  x = x < -80.0f ? -80.0f : x;
  x = x > 80.0f ? 80.0f : x;
  float n = __builtin_rintf(x * 1.44269504088896341f);
  float r = n * -0.693359375f + x;
  r = n * 2.12194440e-4f + r;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  union { int32_t i; float f; } power = {.i = ((int32_t)n + 127) << 23};
  return p * power.f;
}

INLINE float hyperbolic_tangent(float x) {
  float y = x * x; /* the series where the quotient would cancel */
  float series = x * (1.0f + y * (-0.33333333f + y * (0.13333333f + y * (-0.053968254f + y * 0.021869488f))));
  float quotient = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
  return y < 0.04f ? series : quotient;
}

/* The uniform numbers of keys 4 * group .. of one row (noise.py). */
INLINE void uniforms(float *restrict u, int64_t first, int64_t last, uint32_t query, uint32_t head, uint64_t seed) {
#pragma omp simd
  for (int64_t i = 0; i < last - first; i++) {
    uint32_t c0 = (uint32_t)(first + i), c1 = query, c2 = head, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 7; round++) {
      uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
      c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
      c1 = (uint32_t)b;
      c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
      c3 = (uint32_t)a;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    u[4 * i + 0] = ((float)(int32_t)(c0 >> 9) + 0.5f) * 0x1p-23f;
    u[4 * i + 1] = ((float)(int32_t)(c1 >> 9) + 0.5f) * 0x1p-23f;
    u[4 * i + 2] = ((float)(int32_t)(c2 >> 9) + 0.5f) * 0x1p-23f;
    u[4 * i + 3] = ((float)(int32_t)(c3 >> 9) + 0.5f) * 0x1p-23f;
  }
}

/* Where a row's data lie. */
typedef struct {
  const float *offset;                   /* by column, or NULL */
  int64_t statistics, head, sample_head; /* index into lse; the query head; (sample, head) */
  int64_t first, last;                   /* visible columns */
  int64_t sample;
  uint32_t query;
} Row;

INLINE Row locate(const Block *b, int64_t index) {
  int64_t wide = b->rows * b->group, key_head = b->first_head + index / wide, within = index % wide;
  Row row;
  row.sample = key_head / b->kv_heads;
  row.query = (uint32_t)(b->first_query + within / b->group);
  row.head = (key_head % b->kv_heads) * b->group + within % b->group;
  row.offset = b->offset ? b->offset + key_head * b->keys + b->first_key : NULL;
  row.sample_head = row.sample * b->kv_heads * b->group + row.head;
  row.statistics = key_head * b->queries * b->group + b->first_query * b->group + within;
  int64_t mask = row.sample * b->mask_stride + row.query;
  row.first = b->start[mask] - b->first_key;
  row.last = b->stop[mask] - b->first_key;
  if (row.last < row.first) row.last = row.first;
  return row;
}

/* u[j] for the visible columns j; scratch has room for them and for what groups of four stick out. */
INLINE const float *row_noise(const Block *b, const Row *row, float *scratch) {
  int64_t first = row->first + b->first_key, last = row->last + b->first_key;
  uniforms(scratch, first >> 2, (last + 3) >> 2, row->query, (uint32_t)row->head, (uint64_t)b->seeds[row->sample]);
  return scratch + (first & 3) - row->first;
}

INLINE void forward_row(const Block *b, int64_t index, float *noise, const int sampled, const int capped,
                        const int weighed) {
  Row row = locate(b, index);
  int64_t first = row.first, last = row.last;
  float *restrict s = b->scores + index * b->columns;
  float peak = -INFINITY, total = 0.0f, expected = 0.0f, opened = 0.0f, mass = 0.0f;
  const float scaling = capped ? b->scaling / b->softcap : b->scaling, cap = b->softcap;
#pragma omp simd reduction(max : peak)
  for (int64_t j = first; j < last; j++) {
    float x = s[j] * scaling;
    if (capped) x = cap * hyperbolic_tangent(x);
    s[j] = x;
    peak = x > peak ? x : peak;
  }
#pragma omp simd reduction(+ : total)
  for (int64_t j = first; j < last; j++) total += exponential(s[j] - peak);
  const float lse = last > first ? peak + logf(total) : INFINITY;
  const float shift = b->cutoff[row.head] + (b->normalised ? lse : 0.0f), sharpness = b->sharpness[0];
  const float *u = sampled ? row_noise(b, &row, noise) : NULL;
#pragma omp simd reduction(+ : expected, opened, mass)
  for (int64_t j = first; j < last; j++) {
    float z = sharpness * (s[j] - shift + (weighed ? row.offset[j] : 0.0f)), e = 1.0f / (1.0f + exponential(-z));
    float gate = (sampled ? u[j] < e : z > 0.0f) ? 1.0f : 0.0f;
    float weight = gate * exponential(s[j] - lse);
    expected += e;
    opened += gate;
    mass += weight;
    s[j] = weight;
  }
  if (b->renormalise) {
    mass = mass > 0.0f ? mass : 1.0f;
    const float inverse = 1.0f / mass;
#pragma omp simd
    for (int64_t j = first; j < last; j++) s[j] *= inverse;
    b->mass[row.statistics] = mass;
  }
  memset(s, 0, (size_t)first * sizeof(float));
  memset(s + last, 0, (size_t)(b->columns - last) * sizeof(float));
  b->lse[row.statistics] = lse;
  b->expected[row.statistics] = expected;
  b->opened[row.statistics] = opened;
}

INLINE void backward_row(const Block *b, int64_t index, float *noise, float *weights, float *slopes, const int sampled,
                         const int capped, const int weighed) {
  Row row = locate(b, index);
  int64_t first = row.first, last = row.last;
  float *restrict s = b->scores + index * b->columns, *restrict g = b->gradients + index * b->columns;
  float *restrict p_ = weights, *restrict slope = slopes;
  float *restrict key_gradient = weighed ? b->key_gradient + index * b->columns : NULL;
  const float scaling = capped ? b->scaling / b->softcap : b->scaling, cap = b->softcap, sharpness = b->sharpness[0];
  const float lse = b->lse[row.statistics], shift = b->cutoff[row.head] + (b->normalised ? lse : 0.0f);
  const float delta = b->delta[row.statistics], d_expected = b->d_expected[row.sample_head];
  const float inverse = b->renormalise ? 1.0f / b->mass[row.statistics] : 1.0f;
  const float centre = b->renormalise ? delta : 0.0f, subtract = b->renormalise ? 0.0f : delta;
  const float *u = sampled ? row_noise(b, &row, noise) : NULL;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t j = first; j < last; j++) {
    float x = s[j] * scaling;
    if (capped) {
      float t = hyperbolic_tangent(x);
      slope[j] = 1.0f - t * t;
      x = cap * t;
    }
    float p = exponential(x - lse), z = sharpness * (x - shift + (weighed ? row.offset[j] : 0.0f)), w = exponential(-z), e = 1.0f / (1.0f + w), f = w * e;
    float gate = (sampled ? u[j] < e : z > 0.0f) ? 1.0f : 0.0f;
    float pg = p * (g[j] - centre) * inverse, c = d_expected * e * f;
    if (sampled) {
      float a = (1.0f - u[j]) * e, n = u[j] * f, sum = a + n;
      c += pg * (a * n) / (sum * sum);
    }
    c *= sharpness;
    if (weighed) key_gradient[j] = c;
    total += c;
    p_[j] = p;
    s[j] = gate * p * inverse;
    g[j] = gate * pg - p * subtract + c;
  }
  const float back = b->normalised ? total : 0.0f;
#pragma omp simd
  for (int64_t j = first; j < last; j++) {
    float d = (g[j] - back * p_[j]) * b->scaling;
    g[j] = capped ? d * slope[j] : d;
  }
  const size_t before = (size_t)first * sizeof(float), after = (size_t)(b->columns - last) * sizeof(float);
  memset(s, 0, before);
  memset(s + last, 0, after);
  memset(g, 0, before);
  memset(g + last, 0, after);
  if (weighed) {
    memset(key_gradient, 0, before);
    memset(key_gradient + last, 0, after);
  }
  b->gate_gradient[row.statistics] = total;
}

/* One copy of a row's loops for each case, so that none asks inside. */
INLINE void forward_case(const Block *b, int64_t i, float *noise, const int sampled, const int weighed) {
  if (b->softcap > 0.0f) forward_row(b, i, noise, sampled, 1, weighed);
  else forward_row(b, i, noise, sampled, 0, weighed);
}

INLINE void forward_any(const Block *b, int64_t i, float *noise) {
  if (b->seeds && b->offset) forward_case(b, i, noise, 1, 1);
  else if (b->seeds) forward_case(b, i, noise, 1, 0);
  else if (b->offset) forward_case(b, i, noise, 0, 1);
  else forward_case(b, i, noise, 0, 0);
}

INLINE void backward_case(const Block *b, int64_t i, float *noise, float *weights, float *slopes, const int sampled,
                          const int weighed) {
  if (b->softcap > 0.0f) backward_row(b, i, noise, weights, slopes, sampled, 1, weighed);
  else backward_row(b, i, noise, weights, slopes, sampled, 0, weighed);
}

void gated_rows_forward(const Block *block) {
  const int64_t count = block->count * block->rows * block->group;
#pragma omp parallel
  {
    float *noise = malloc(((size_t)block->columns + 8) * sizeof(float));
#pragma omp for schedule(dynamic, 8)
    for (int64_t i = 0; i < count; i++) {
      forward_any(block, i, noise);
    }
    free(noise);
  }
}

void gated_rows_backward(const Block *block) {
  const int64_t count = block->count * block->rows * block->group;
#pragma omp parallel
  {
    const size_t room = (size_t)block->columns + 8;
    float *noise = malloc(3 * room * sizeof(float)), *weights = noise + room, *slopes = weights + room;
#pragma omp for schedule(dynamic, 8)
    for (int64_t i = 0; i < count; i++) {
      if (block->seeds && block->offset) backward_case(block, i, noise, weights, slopes, 1, 1);
      else if (block->seeds) backward_case(block, i, noise, weights, slopes, 1, 0);
      else if (block->offset) backward_case(block, i, noise, weights, slopes, 0, 1);
      else backward_case(block, i, noise, weights, slopes, 0, 0);
    }
    free(noise);
  }
}

/* Keys or values as the model holds them: (heads, keys, dim), each head's rows `stride` apart from its offset on, in
   elements; bfloat: bfloat16 instead of float32. */
typedef struct {
  const void *data;
  const int64_t *offsets; /* per head of key of the block */
  int64_t stride, dim;
  int32_t bfloat;
} Rows;

INLINE float widen(uint16_t x) {
  union { uint32_t i; float f; } wide = {.i = (uint32_t)x << 16};
  return wide.f;
}

/* out = sum_j weights[j] value[j], reading only the rows whose weight is not zero. */
INLINE void value_row(const float *restrict w, int64_t columns, const Rows *value, int64_t head, float *restrict out) {
  const int64_t dim = value->dim, offset = value->offsets[head];
  memset(out, 0, (size_t)dim * sizeof(float));
  for (int64_t block = 0; block < columns; block += 16) {
    uint32_t any = 0;
    const int64_t wide = columns - block < 16 ? columns - block : 16;
    for (int64_t j = 0; j < wide; j++) any |= (uint32_t)(w[block + j] != 0.0f) << j;
    for (; any; any &= any - 1) {
      const int64_t j = block + __builtin_ctz(any), at = offset + j * value->stride;
      const float weight = w[j];
      if (value->bfloat) {
        const uint16_t *restrict v = (const uint16_t *)value->data + at;
        for (int64_t d = 0; d < dim; d++) out[d] += weight * widen(v[d]);
      } else {
        const float *restrict v = (const float *)value->data + at;
        for (int64_t d = 0; d < dim; d++) out[d] += weight * v[d];
      }
    }
  }
}

/* output (batch * kv_heads, queries * group, dim) of the block's rows, from gated weights. */
void open_values(const Block *block, const Rows *value, float *output) {
  const int64_t wide = block->rows * block->group, all = block->queries * block->group;
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t i = 0; i < block->count * wide; i++) {
    const int64_t head = i / wide, row = (block->first_head + head) * all + block->first_query * block->group + i % wide;
    value_row(block->scores + i * block->columns, block->columns, value, head, output + row * value->dim);
  }
}

/* One query a sample against a cache of keys, all in one go: scores, gates, and the values of open edges. query is
   (batch * kv_heads, group, dim); deterministic gates. */
void gated_decode(const Block *block, const float *query, const Rows *key, const Rows *value, float *output) {
  const int64_t chunk = 256, chunks = (block->columns + chunk - 1) / chunk, group = block->group, dim = key->dim;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < block->count * chunks; i++) {
      const int64_t head = i / chunks, first = (i % chunks) * chunk;
      const int64_t last = first + chunk < block->columns ? first + chunk : block->columns;
      for (int64_t j = first; j < last; j++) {
        const int64_t at = key->offsets[head] + j * key->stride;
        for (int64_t g = 0; g < group; g++) {
          const float *restrict q = query + (head * group + g) * dim;
          float sum = 0.0f;
          if (key->bfloat) {
            const uint16_t *restrict k = (const uint16_t *)key->data + at;
            for (int64_t d = 0; d < dim; d++) sum += q[d] * widen(k[d]);
          } else {
            const float *restrict k = (const float *)key->data + at;
            for (int64_t d = 0; d < dim; d++) sum += q[d] * k[d];
          }
          block->scores[(head * group + g) * block->columns + j] = sum;
        }
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < block->count * group; i++) {
      forward_any(block, i, NULL);
      value_row(block->scores + i * block->columns, block->columns, value, i / group, output + i * value->dim);
    }
  }
}
