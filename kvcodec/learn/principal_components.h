// Principal component analysis of sample vectors.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvcodec {

struct PrincipalComponents {
    /// [dim, dim] row j: the j-th direction, unit L2 norm, orthogonal to the others; its largest element is positive.
    std::vector<float> basis;
    std::vector<float> variance;  ///< [dim] of the rows along them, descending, >= 0
};

/// Eigenvectors and eigenvalues of sum x x^T / n over the n rows x, in double precision. rows: [n, dim] row-major with
/// dim >= 1, their mean removed. Rows with a non-finite element are left out. Where rows do not tell (fewer of them
/// than dimensions, none at all) the basis is completed with directions of variance 0. Single-threaded; the result
/// depends on the rows only.
PrincipalComponents find_principal_components(std::span<const float> rows, size_t dim);

}  // namespace kvcodec
