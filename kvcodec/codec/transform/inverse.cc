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
        double *left_row = &left[column * dim], *right_row = &right[column * dim];
        if (pivot != column) {
            std::swap_ranges(left_row, left_row + dim, &left[pivot * dim]);
            std::swap_ranges(right_row, right_row + dim, &right[pivot * dim]);
        }
        for (size_t i = 0; i < dim; ++i) {
            left_row[i] /= value;
            right_row[i] /= value;
        }
        for (size_t row = 0; row < dim; ++row) {
            double *other_left = &left[row * dim], *other_right = &right[row * dim];
            const double factor = other_left[column];
            if (row == column || factor == 0.0) {
                continue;
            }
            for (size_t i = column; i < dim; ++i) {  // before it, the pivot's row is empty
                other_left[i] -= factor * left_row[i];
            }
            for (size_t i = 0; i < dim; ++i) {
                other_right[i] -= factor * right_row[i];
            }
        }
    }
    const bool sound =
        std::ranges::all_of(right, [&](double value) { return std::abs(value) * largest <= kMostInverse; });
    return sound ? std::optional(std::move(right)) : std::nullopt;
}

}  // namespace kvcodec
