// The inverse of a small matrix.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace kvcodec {

/// matrix: [dim, dim] row-major. Nothing if it is singular, or so close to it that the inverse's entries exceed
/// kMostInverse times the reciprocal of the matrix' largest entry, or not finite.
std::optional<std::vector<double>> inverse(std::span<const float> matrix, size_t dim);

inline constexpr double kMostInverse = 1e4;

}  // namespace kvcodec
