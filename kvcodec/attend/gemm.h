// The two small dense products of attention over a block of cells, lanes contiguous.
#pragma once

#include <cstddef>

namespace kvcodec {

/// c[m, lanes] = a[m, k] * b[k, lanes]; all row-major, lanes a multiple of 4. Scores: a = keys, b = queries transposed.
void gemm_scores(const float* a, size_t m, size_t k, const float* b, size_t lanes, float* c);

/// o[k, lanes] += v[m, k]^T * p[m, lanes]; all row-major, lanes a multiple of 4. Values: p = weights.
void gemm_values(const float* v, size_t m, size_t k, const float* p, size_t lanes, float* o);

}  // namespace kvcodec
