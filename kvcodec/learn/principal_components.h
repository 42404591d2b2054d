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

/// Directions along which vectors are coded so that what is read of them keeps most.
struct WeightedComponents {
    /// [dim, dim]: a vector is the sum over j of y_j times row j. Errors in all y_j count alike.
    std::vector<float> basis;
    std::vector<float> variance;  ///< [dim] of y over the rows, descending, >= 0
    double mean_weight = 1.0;     ///< mean of ||y||^2 over all directions of x with ||x|| = 1
    double energy = 0.0;          ///< mean of ||x||^2 over the rows
};

/// What an eigenvalue of the readers' moments makes a direction count: (value / mean value)^power + offset. With power
/// 1 and hardly any offset, errors count as the readers see them on average. But readers differ, and what few of them
/// see must not be lost: in KL divergence the values here do better (docs/results/codes.md).
struct Tempering {
    double power = 0.5;
    double offset = 0.3;  ///< more than 0
};
/// Errors as the readers see them on average.
inline constexpr Tempering kUntempered{1.0, 1e-3};

/// Sum over the rows of x x^T [dim, dim], in double precision. Rows with a non-finite element are left out.
std::vector<double> second_moments(std::span<const float> rows, size_t dim);

/// Eigenvectors and eigenvalues of sum x x^T / n over the n rows x, in double precision. rows: [n, dim] row-major with
/// dim >= 1, their mean removed. Rows with a non-finite element are left out. Where rows do not tell (fewer of them
/// than dimensions, none at all) the basis is completed with directions of variance 0. Single-threaded; the result
/// depends on the rows only.
PrincipalComponents find_principal_components(std::span<const float> rows, size_t dim);

/// The same of second moments [dim, dim] themselves, symmetric and not negative.
PrincipalComponents principal_components_of(std::span<const double> moments, size_t dim);

/// Principal components of W x, taken back by W^-1. W^T W has the eigenvectors of `readers` [dim, dim], the second
/// moments of what takes products with the vectors (queries of keys, rows of the output projection of values), and
/// their tempered weights. Readers of zero, or none at all: all directions count alike. rows as above.
WeightedComponents find_weighted_components(std::span<const float> rows, std::span<const double> readers, size_t dim,
                                            const Tempering& tempering = {});

}  // namespace kvcodec
