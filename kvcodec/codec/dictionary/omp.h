// Orthogonal matching pursuit: the encoder of the dictionary codec and of dictionary learning.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcodec {

/// When a pursuit stops: after `sparsity` atoms, or before once ||residual|| <= relative_error * ||x||.
struct OmpOptions {
    size_t sparsity = 8;         ///< at most this many atoms a vector, <= kMaxSparsity
    float relative_error = 0.0F;  ///< delta of the published error threshold; 0 = off
};

inline constexpr size_t kMaxSparsity = 64;

/// y = argmin ||x - D y|| over y with at most s nonzeros, greedily: the atom that correlates most with the residual joins
/// the support, then all coefficients are re-fitted by least squares (Cholesky). Follows methods of Pati et al. 1993 and
/// Rubinstein et al. 2008; unlike the published code it never chooses an atom twice, stops at a residual lost in rounding,
/// and codes zero and non-finite vectors as zero.
///
/// atoms: [n_atoms, dim] row-major, unit L2 norm. x: [n, dim] row-major.
/// index, coefficient: [n, sparsity] (unused tail: 0); count: [n] nonzeros; residual_energy: [n] ||x - D y||^2, may be null.
/// Single-threaded; call on slices of x from several threads.
void omp_encode(const float* atoms, size_t n_atoms, size_t dim, const float* x, size_t n, const OmpOptions& options,
                uint16_t* index, float* coefficient, uint8_t* count, float* residual_energy);

}  // namespace kvcodec
