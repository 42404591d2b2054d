// The two dense products of attention over a block of cells for many lanes, in 16 bits: twice as many a second where a
// processor adds two products of shorts in one instruction.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcodec {

class Arena;

/// Rounded queries, and scratch memory for rows and weights; for one thread.
///
/// Whatever is summed over is rounded to 16 bits of its norm: queries and keys, a dimension of the values and a lane's
/// weights over the rows given; so that sums stay below 2^31. Of n products the sum is off by about 1e-5 of the product
/// of the norms, sqrt(n) / 32767 of it at most. It depends a little on which rows come together. Infinite and NaN
/// elements make their dimension or row NaN.
class ShortGemm {
  public:
    /// A multiple of which lanes must be.
    static constexpr size_t kLaneMultiple = 16;

    /// Whether it is faster than gemm.h on this machine: to be asked once, it takes microseconds.
    static bool pays();
    /// Floats that it takes of an arena for at most so many rows, elements of a row and lanes.
    static size_t floats(size_t rows, size_t dim, size_t lanes);
    /// vnni: what pays() said, or false.
    ShortGemm(Arena& arena, size_t rows, size_t dim, size_t lanes, bool vnni);

    /// q [k, lanes]: what scores() multiplies from now on.
    void set_queries(const float* q, size_t k, size_t lanes);
    /// c[m, lanes] = a[m, k] * q[k, lanes]; k and lanes as set_queries() got them.
    void scores(const float* a, size_t m, size_t k, size_t lanes, float* c);
    /// o[k, lanes] += v[m, k]^T * p[m, lanes]; p >= 0.
    void values(const float* v, size_t m, size_t k, const float* p, size_t lanes, float* o);

  private:
    bool vnni_;
    int32_t* queries_;    // [pairs(dim), lanes], two elements each
    float* query_unit_;   // [lanes]
    int32_t* rows_;       // keys [rows, pairs(dim)], values [pairs(rows), dim]
    float* row_unit_;     // [rows] or [dim]
    int32_t* weights_;    // [pairs(rows), lanes]
    float* weight_unit_;  // [lanes]
};

}  // namespace kvcodec
