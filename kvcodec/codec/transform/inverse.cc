#include "kvcodec/codec/transform/inverse.h"

#include <algorithm>
#include <cmath>

namespace kvcodec {

std::optional<std::vector<double>> inverse(std::span<const float> matrix, size_t dim) {
    // Gauss-Jordan with pivots by row: [left | right] becomes [I | inverse].
    std::vector<double> left(matrix.begin(), matrix.end());
    std::vector<double> right(dim * dim);
    double largest = 0.0;
    for (size_t i = 0; i < dim * dim; ++i) {
        if (!std::isfinite(left[i])) {
            return std::nullopt;
        }
        largest = std::max(largest, std::abs(left[i]));
    }
    for (size_t i = 0; i < dim; ++i) {
        right[i * dim + i] = 1.0;
    }
    for (size_t column = 0; column < dim; ++column) {
        size_t pivot = column;
        for (size_t row = column + 1; row < dim; ++row) {
            if (std::abs(left[row * dim + column]) > std::abs(left[pivot * dim + column])) {
                pivot = row;
            }
        }
        const double value = left[pivot * dim + column];
        if (value == 0.0) {
            return std::nullopt;
        }
        for (size_t i = 0; i < dim; ++i) {
            std::swap(left[pivot * dim + i], left[column * dim + i]);
            std::swap(right[pivot * dim + i], right[column * dim + i]);
        }
        for (size_t i = 0; i < dim; ++i) {
            left[column * dim + i] /= value;
            right[column * dim + i] /= value;
        }
        for (size_t row = 0; row < dim; ++row) {
            const double factor = left[row * dim + column];
            if (row == column || factor == 0.0) {
                continue;
            }
            for (size_t i = 0; i < dim; ++i) {
                left[row * dim + i] -= factor * left[column * dim + i];
                right[row * dim + i] -= factor * right[column * dim + i];
            }
        }
    }
    const bool sound =
        std::ranges::all_of(right, [&](double value) { return std::abs(value) * largest <= kMostInverse; });
    return sound ? std::optional(std::move(right)) : std::nullopt;
}

}  // namespace kvcodec
