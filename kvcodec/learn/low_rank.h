// Low-rank approximation of projection weights and how ranks are shared out between layers (LoRC, arXiv 2410.03111).
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvcodec {

/// Left singular vectors and singular values of a matrix, or of what stands for one.
struct LeftSingular {
    std::vector<float> vectors;  ///< [rows, rows] row j: the j-th left singular vector, orthonormal
    std::vector<double> values;  ///< [rows] descending, >= 0
    size_t most_rank = 0;        ///< values from here on are 0 whatever the matrix: it has fewer columns

    size_t rows() const { return values.size(); }
    /// Largest over smallest value below most_rank, the smallest counted as at least 1e-7 of the largest; 1 for zero.
    double condition() const;
    /// Share of the sum of squares that the values from `rank` on have; 0 for zero.
    double lost(size_t rank) const;
};

/// Of `matrix` [rows, columns], row-major.
LeftSingular left_singular(std::span<const float> matrix, size_t rows, size_t columns);
/// Of any matrix A with A A^T = moments [rows, rows]: of W X from the second moments of what W makes of the inputs X,
/// for instance. Then projecting on the first vectors loses least of W X, not of W.
LeftSingular left_singular(std::span<const double> moments, size_t rows);

/// U_r U_r^T matrix, U_r being the first `rank` vectors; where these are the matrix' own, the best approximation of
/// that rank (Eckart-Young). Written to `projected` [rows, columns], which may be the matrix itself.
void project(const LeftSingular& basis, size_t rank, std::span<const float> matrix, size_t columns,
             std::span<float> projected);

/// Share of the full rank that each layer keeps, by cumulative condition numbers: of layer l the sum of
/// log_condition[j] over j >= l, which falls from layer to layer. Shares fall in a straight line with it, from the
/// first layer's, at most 1, to the last one's, which is `steepness` below it in parts of it (0: uniform; less where
/// the first has reached 1), and their mean is `keep`, more than 0 and at most 1.
std::vector<double> progressive_shares(std::span<const double> log_condition, double keep, double steepness);

/// Ranks: multiples of `multiple`, at least that, of each share times full[l], themselves multiples. Rounded so that
/// their sum is the nearest that it can be, but for ranks that would be less than `multiple`; they fall where shares
/// do.
std::vector<size_t> ranks_of(std::span<const double> shares, std::span<const size_t> full, size_t multiple);

}  // namespace kvcodec
