/* One query attends to stored parts of videos, read where they lie (see inplace.py, which calls this).

   A search scores a few hundred of all videos for one query. Their numbers are spread over a file that is mapped into
   memory, so it waits for memory: every number is fetched once, ahead of its use, and nothing is copied.

   Built by setuptools if there is a C compiler that knows _Float16, as GCC 12 does; else PyTorch does the same. */

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LINE 64 /* bytes that memory hands over at once */
#define TURN 512 /* numbers fetched of one vector, then used of another: asked for all at once, lines would queue */
#define LANES 32 /* sums side by side, or each addition would wait for the one before */
#define SHORTEST 1e-12f /* as in distill/model/similarity.py */
#define LEFT_OUT -1e18f /* as in distill/model/pooling.py */

/* Float16 to float32. GCC 12 does not vectorise that by itself, and x86 processors differ in how many they can do. */
#if defined(__x86_64__) && defined(__gnu_linux__)
#include <immintrin.h>

#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

__attribute__((target("avx512f"))) static int64_t widen_by_16(const _Float16 *from, float *to, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + i))));
    return i;
}

__attribute__((target("avx,f16c"))) static int64_t widen_by_8(const _Float16 *from, float *to, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    return i;
}

static void widen(const _Float16 *from, float *to, int64_t count) {
    int64_t done = 0;
    if (__builtin_cpu_supports("avx512f"))
        done = widen_by_16(from, to, count);
    else if (__builtin_cpu_supports("f16c"))
        done = widen_by_8(from, to, count);
    for (int64_t i = done; i < count; i++)
        to[i] = (float)from[i];
}
#else
#define FOR_EVERY_PROCESSOR

static void widen(const _Float16 *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        to[i] = (float)from[i];
}
#endif

FOR_EVERY_PROCESSOR static float inner(const float *a, const float *b, int64_t dim) {
    float sums[LANES] = {0}, sum = 0;
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += a[d + lane] * b[d + lane];
    for (; d < dim; d++)
        sum += a[d] * b[d];
    for (int lane = 0; lane < LANES; lane++)
        sum += sums[lane];
    return sum;
}

static float length(const float *a, int64_t dim) { return fmaxf(sqrtf(inner(a, a, dim)), SHORTEST); }

/* sum = weights x vectors; four vectors at a time, since the sum is read and written each time */
FOR_EVERY_PROCESSOR static void mix(const float *weights, const float *vectors, int64_t count, int64_t dim,
                                    float *sum) {
    int64_t v = 0;
    memset(sum, 0, dim * sizeof(float));
    for (; v + 4 <= count; v += 4) {
        const float *w = weights + v, *a = vectors + v * dim, *b = a + dim, *c = b + dim, *d = c + dim;
        for (int64_t i = 0; i < dim; i++)
            sum[i] += w[0] * a[i] + w[1] * b[i] + w[2] * c[i] + w[3] * d[i];
    }
    for (; v < count; v++)
        for (int64_t i = 0; i < dim; i++)
            sum[i] += weights[v] * vectors[v * dim + i];
}

static void softmax(float *scores, int64_t count) {
    float most = scores[0], total = 0;
    for (int64_t i = 1; i < count; i++)
        most = scores[i] > most ? scores[i] : most;
    for (int64_t i = 0; i < count; i++)
        total += scores[i] = expf(scores[i] - most);
    for (int64_t i = 0; i < count; i++)
        scores[i] /= total;
}

FOR_EVERY_PROCESSOR static void widen_bytes(const int8_t *from, float scale, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        to[i] = scale * from[i];
}

enum { HALF, BYTE, WHOLE }; /* float16, int8 with a scale for every part, float32 */
static const int64_t SIZES[] = {sizeof(_Float16), sizeof(int8_t), sizeof(float)};

/* Widens the vector `from`, while memory gets `next`. */
static void take(const char *from, const char *next, int kind, float scale, float *to, int64_t dim) {
    const int64_t size = SIZES[kind];
    for (int64_t d = 0; d < dim; d += TURN) {
        const int64_t count = dim - d < TURN ? dim - d : TURN;
        const char *here = from + d * size, *ahead = next + d * size;
        for (const char *line = ahead; line < ahead + count * size; line += LINE)
            __builtin_prefetch(line);
        if (kind == HALF)
            widen((const _Float16 *)here, to + d, count);
        else if (kind == BYTE)
            widen_bytes((const int8_t *)here, scale, to + d, count);
        else
            memcpy(to + d, here, count * size);
    }
}

const int inplace_version = 2; /* of what `attend` takes and gives: inplace.py calls no other */

/* keys, values [video, part, dim] of a kind, scales [video, part] of keys that are bytes, counted [video, part / alike]
   or NULL, rows [count]: videos, query [dim].

   products [count, part]: <query, key>, divided by the key's length if `unit`.
   pooled [count] or NULL: <query, s> / |s|, where s is the sum of the values (of length 1 if `unit`) with the softmax
   of products / temperature as weights; parts that are not counted, `alike` at a time, have none. Not of bytes.
   room: dim numbers, or (part + 1) * dim + part if pooled.

   Returns 1, without having read anything outside, if a row is no video; otherwise 0. */
int attend(const char *keys, const float *scales, const char *values, int kind, const bool *counted, int64_t alike,
           const int64_t *rows, int64_t count, int64_t videos, int64_t parts, int64_t dim, const float *query,
           float temperature, bool unit, float *products, float *pooled, float *room) {
    const int64_t size = parts * dim, step = dim * SIZES[kind], whole = size * SIZES[kind];
    float *sum = room + (pooled ? size : 0), *weights = sum + dim;

    for (int64_t r = 0; r < count; r++)
        if (rows[r] < 0 || rows[r] >= videos)
            return 1;
    for (int64_t r = 0; r < count; r++) {
        const int64_t here = rows[r] * whole, next = rows[r + 1 < count ? r + 1 : r] * whole;
        float *own = products + r * parts;
        for (int64_t p = 0; p < parts; p++) {
            float *wide = room + (pooled ? p * dim : 0);
            const float scale = scales ? scales[rows[r] * parts + p] : 1;
            take(keys + here + p * step, keys + next + p * step, kind, scale, wide, dim);
            own[p] = inner(query, wide, dim) / (unit ? length(wide, dim) : 1);
        }
        if (!pooled)
            continue;
        for (int64_t p = 0; p < parts; p++)
            weights[p] = counted && !counted[(rows[r] * parts + p) / alike] ? LEFT_OUT : own[p] / temperature;
        softmax(weights, parts);
        float along = 0;
        for (int64_t p = 0; p < parts; p++) {
            along += weights[p] * own[p];
            if (values != keys)
                take(values + here + p * step, values + next + p * step, kind, 1, room + p * dim, dim);
            if (unit)
                weights[p] /= length(room + p * dim, dim);
        }
        mix(weights, room, parts, dim, sum);
        pooled[r] = (values == keys ? along : inner(query, sum, dim)) / length(sum, dim);
    }
    return 0;
}
