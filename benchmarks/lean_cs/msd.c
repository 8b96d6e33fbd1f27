/* Forward and backward pass of a pruned mixed-scale dense network: sums of dilated 3x3 convolutions of single channels.

   A map has SIZE x SIZE pixels and a border of BORDER pixels that holds its reflection; a row of it has STRIDE floats.
   Map 0 is the input, map k + 1 the output of layer k.  Layer k reads the maps source[first[k]] ... source[first[k+1]-1]
   with one 3x3 kernel each.  Sums run over blocks of LANES pixels, which compilers turn into vector instructions. */

#include <stdlib.h>
#include <string.h>

enum { BORDER = 10, LANES = 16, WIDE = 4 };

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
#define AT(p) (*(vec *)(p))

typedef struct {
    int layers, size, stride, rows;      /* stride: floats of a row; rows: size + 2 BORDER */
    const int *first, *source, *dilation;
    const float *weight, *bias;
} Net;

static long plane(const Net *n) { return (long)n->stride * n->rows; }

/* The border of a map: its reflection about the outermost pixels. */
static void reflect(const Net *n, float *map) {
    int last = n->size - 1;
    for (int r = BORDER; r < BORDER + n->size; r++) {
        float *row = map + (long)r * n->stride + BORDER;
        for (int k = 1; k <= BORDER; k++) {
            row[-k] = row[k];
            row[last + k] = row[last - k];
        }
    }
    for (int k = 1; k <= BORDER; k++) {
        memcpy(map + (long)(BORDER - k) * n->stride, map + (long)(BORDER + k) * n->stride, n->stride * sizeof(float));
        memcpy(map + (long)(BORDER + last + k) * n->stride, map + (long)(BORDER + last - k) * n->stride,
               n->stride * sizeof(float));
    }
}

/* The transpose of reflect: what arrived at the border is added to the pixels that it mirrors. */
static void fold(const Net *n, float *map) {
    int last = n->size - 1;
    for (int k = 1; k <= BORDER; k++)
        for (int x = 0; x < n->stride; x++) {
            map[(long)(BORDER + k) * n->stride + x] += map[(long)(BORDER - k) * n->stride + x];
            map[(long)(BORDER + last - k) * n->stride + x] += map[(long)(BORDER + last + k) * n->stride + x];
        }
    for (int r = BORDER; r < BORDER + n->size; r++) {
        float *row = map + (long)r * n->stride + BORDER;
        for (int k = 1; k <= BORDER; k++) {
            row[k] += row[-k];
            row[last - k] += row[last + k];
        }
    }
}

void forward(const Net *n, float *maps) {
    reflect(n, maps);
    for (int k = 0; k < n->layers; k++) {
        float *out = maps + (k + 1) * plane(n);
        int d = n->dilation[k];
        for (int r = BORDER; r < BORDER + n->size; r++)
            for (int x = BORDER; x < BORDER + n->size; x += WIDE * LANES) {
                vec sum[WIDE];
                for (int j = 0; j < WIDE; j++) sum[j] = n->bias[k] - (vec){0};
                for (int e = n->first[k]; e < n->first[k + 1]; e++) {
                    const float *in = maps + n->source[e] * plane(n) + (long)r * n->stride + x;
                    for (int t = 0; t < 9; t++) {
                        const float *p = in + (t / 3 - 1) * d * n->stride + (t % 3 - 1) * d;
                        float w = n->weight[9 * e + t];
                        for (int j = 0; j < WIDE; j++) sum[j] += w * AT(p + j * LANES);
                    }
                }
                for (int j = 0; j < WIDE; j++) AT(out + (long)r * n->stride + x + j * LANES) = sum[j];
                for (int j = 0; j < WIDE * LANES; j++) {
                    float *p = out + (long)r * n->stride + x + j;
                    *p = *p > 0 ? *p : 0;
                }
            }
        reflect(n, out);
    }
}

/* Gradient of the nine weights of one kernel: products of the shifted input with the gradient of the output. */
static void weights(const Net *n, const float *in, const float *top, int wide, int d, float *found) {
    vec sum[9] = {{0}};
    for (int r = 0; r < n->size; r++)
        for (int x = 0; x < n->size; x += LANES) {
            vec g = AT(top + (long)(r + 2 * BORDER) * wide + x + 2 * BORDER);
            const float *p = in + (long)(r + BORDER) * n->stride + x + BORDER;
            for (int t = 0; t < 9; t++) sum[t] += g * AT(p + (t / 3 - 1) * d * n->stride + (t % 3 - 1) * d);
        }
    for (int t = 0; t < 9; t++)
        for (int j = 0; j < LANES; j++) found[t] += sum[t][j];
}

/* Gradient of a map, border included: the transposed convolution of the gradient of what was made from it. */
static void inputs(const Net *n, float *map, const float *top, int wide, int d, const float *w) {
    for (int r = BORDER - d; r < BORDER + n->size + d; r++)
        for (int x = 0; x < n->stride; x += 2 * LANES) {
            float *p = map + (long)r * n->stride + x;
            vec a = AT(p), b = AT(p + LANES);
            for (int t = 0; t < 9; t++) {
                const float *g = top + (long)(r + BORDER - (t / 3 - 1) * d) * wide + x + BORDER - (t % 3 - 1) * d;
                a += w[t] * AT(g);
                b += w[t] * AT(g + LANES);
            }
            AT(p) = a;
            AT(p + LANES) = b;
        }
}

/* grads: gradients of the maps' pixels on entry (borders 0), changed here; those of the input are not computed. */
void backward(const Net *n, const float *maps, float *grads, float *weight, float *bias) {
    int wide = n->stride + 2 * BORDER + LANES;
    float *top = calloc((long)wide * (n->rows + 2 * BORDER), sizeof(float));
    for (int k = n->layers - 1; k >= 0; k--) {
        float *g = grads + (k + 1) * plane(n);
        const float *out = maps + (k + 1) * plane(n);
        int d = n->dilation[k];
        float total = 0;
        fold(n, g);
        for (int r = BORDER; r < BORDER + n->size; r++)
            for (int x = BORDER; x < BORDER + n->size; x++) {
                long at = (long)r * n->stride + x;
                float value = out[at] > 0 ? g[at] : 0;
                top[(long)(r + BORDER) * wide + x + BORDER] = value;
                total += value;
            }
        bias[k] += total;
        for (int e = n->first[k]; e < n->first[k + 1]; e++) {
            weights(n, maps + n->source[e] * plane(n), top, wide, d, weight + 9 * e);
            if (n->source[e] > 0)
                inputs(n, grads + n->source[e] * plane(n), top, wide, d, n->weight + 9 * e);
        }
    }
    free(top);
}
