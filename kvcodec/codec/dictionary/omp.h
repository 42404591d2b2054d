// Orthogonal matching pursuit: the encoder of the dictionary codec and of dictionary learning.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvcodec/target.h"

namespace kvcodec {

/// When a pursuit stops: after `sparsity` atoms, or before once ||residual|| <= relative_error * ||x||.
struct OmpOptions {
    size_t sparsity = 8;          ///< at most this many atoms a vector, <= kMaxSparsity
    float relative_error = 0.0F;  ///< delta of the published error threshold; 0 = off
    /// false: D y may be 1e-3 ||x|| away from the best fit, and residual energies 1 %, which may be faster. Then y,
    /// too, may depend on n. Means nothing where there is a relative_error.
    bool refine = true;
    bool short_products = has_avx512_vnni();  ///< may be turned off, but not on
};

inline constexpr size_t kMaxSparsity = 64;
inline constexpr size_t kMaxAtoms = 65536;

/// Elements between the rows of a support's Gram matrix: whole groups of atoms.
constexpr size_t gram_stride(size_t sparsity) {
    return (sparsity + 7) / 8 * 8;
}

/// y = argmin ||x - D y|| over y with at most s nonzeros, greedily: the atom that correlates most with the residual
/// joins the support, then all coefficients are re-fitted by least squares. Follows the methods of Pati et al. 1993 and
/// Rubinstein et al. 2008; unlike the published code it never chooses an atom twice, stops at a residual lost in
/// rounding (||r|| around 1e-6 ||x||, or all correlations with it) and codes zero and non-finite vectors as zero.
/// Correlations are of 16-bit numbers: of atoms whose correlations differ by less than 1e-4 ||x|| (2e-4 above a
/// sparsity of 32) any may be chosen, and which one may depend on n and on the instruction set. The fit is in 32 bits,
/// unless a coarser one will do.
///
/// atoms: [n_atoms, dim] row-major, L2 norms close to 1 (half-precision atoms may be off: the fit uses the true norms).
/// x: [n, dim] row-major. index, coefficient: [n, sparsity] in order of choice (unused tail: 0). count: [n] nonzeros.
/// residual_energy: [n] ||x - D y||^2 (NaN or infinity where x is not finite), may be null. support_gram: [n, sparsity,
/// gram_stride(sparsity)], may be null: the products of each support's atoms, [count, count] in order of choice (the
/// rest is arbitrary), of atoms in 16 bits where the batch is large.
///
/// Single-threaded; call on slices of x from several threads. A call packs the atoms first, as much work as some ten
/// choices; a large batch also builds the atoms' Gram matrix (2 n_atoms^2 bytes, freed before returning), which makes
/// it two to four times as fast. Throws Error if sparsity, n_atoms or dim is out of range, or where there is no memory.
void omp_encode(const float* atoms, size_t n_atoms, size_t dim, const float* x, size_t n, const OmpOptions& options,
                uint16_t* index, float* coefficient, uint8_t* count, float* residual_energy,
                float* support_gram = nullptr);

}  // namespace kvcodec
