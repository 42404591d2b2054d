#include "kvcodec/learn/low_rank.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kvcodec/learn/principal_components.h"

namespace kvcodec {

namespace {

constexpr double kLeastValue = 1e-7;

}  // namespace

double LeftSingular::condition() const {
    const double largest = values.empty() ? 0.0 : values.front();
    return largest == 0.0 ? 1.0 : largest / std::max(values[most_rank - 1], kLeastValue * largest);
}

double LeftSingular::lost(size_t rank) const {
    const auto squares = [&](size_t begin) {
        return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(std::min(begin, rows())), values.end(), 0.0,
                               [](double sum, double value) { return sum + value * value; });
    };
    const double all = squares(0);
    return all == 0.0 ? 0.0 : squares(rank) / all;
}

LeftSingular left_singular(std::span<const double> moments, size_t rows) {
    const PrincipalComponents components = principal_components_of(moments, rows);
    LeftSingular found{components.basis, {}, rows};
    std::ranges::transform(components.variance, std::back_inserter(found.values),
                           [](float variance) { return std::sqrt(static_cast<double>(variance)); });
    return found;
}

LeftSingular left_singular(std::span<const float> matrix, size_t rows, size_t columns) {
    std::vector<float> transposed(matrix.size());
    for (size_t i = 0; i < rows; ++i) {
        for (size_t j = 0; j < columns; ++j) {
            transposed[j * rows + i] = matrix[i * columns + j];
        }
    }
    LeftSingular found = left_singular(second_moments(transposed, rows), rows);
    found.most_rank = std::min(rows, columns);
    return found;
}

void project(const LeftSingular& basis, size_t rank, std::span<const float> matrix, size_t columns,
             std::span<float> projected) {
    const size_t rows = basis.rows();
    std::vector<float> latents(rank * columns);
    for (size_t j = 0; j < rank; ++j) {
        for (size_t i = 0; i < rows; ++i) {
            const float along = basis.vectors[j * rows + i];
            for (size_t c = 0; c < columns; ++c) {
                latents[j * columns + c] += along * matrix[i * columns + c];
            }
        }
    }
    for (size_t i = 0; i < rows; ++i) {
        float* row = &projected[i * columns];
        std::fill_n(row, columns, 0.0F);
        for (size_t j = 0; j < rank; ++j) {
            const float along = basis.vectors[j * rows + i];
            for (size_t c = 0; c < columns; ++c) {
                row[c] += along * latents[j * columns + c];
            }
        }
    }
}

std::vector<double> progressive_shares(std::span<const double> log_condition, double keep, double steepness) {
    const size_t n = log_condition.size();
    std::vector<double> fall(n);  // of the cumulative logarithm below the first layer's, in parts of all of it
    for (size_t l = 1; l < n; ++l) {
        fall[l] = fall[l - 1] + log_condition[l - 1];
    }
    const double all = fall.empty() ? 0.0 : fall.back();
    for (double& value : fall) {
        value = all > 0.0 ? value / all : 0.0;
    }
    const double mean = std::accumulate(fall.begin(), fall.end(), 0.0) / static_cast<double>(std::max<size_t>(n, 1));
    // first * (1 - steepness * mean) = keep
    const double first = std::min(1.0, keep / (1.0 - steepness * mean));
    const double slope = mean == 0.0 ? 0.0 : (first - keep) / mean;
    std::vector<double> shares;
    std::ranges::transform(fall, std::back_inserter(shares), [&](double value) { return first - slope * value; });
    return shares;
}

std::vector<size_t> ranks_of(std::span<const double> shares, std::span<const size_t> full, size_t multiple) {
    std::vector<size_t> ranks;
    std::vector<double> rest;  // of the exact rank, that rounding down leaves
    double left = 0.0;
    for (size_t l = 0; l < shares.size(); ++l) {
        const double exact = std::clamp(shares[l], 0.0, 1.0) * static_cast<double>(full[l] / multiple);
        ranks.push_back(std::max<size_t>(1, static_cast<size_t>(exact)));
        rest.push_back(exact - static_cast<double>(ranks.back()));
        left += rest.back();
    }
    // Largest remainders first: ranks fall where shares do.
    std::vector<size_t> order(ranks.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return rest[a] > rest[b]; });
    for (size_t i = 0; i < order.size() && left >= 0.5; ++i, left -= 1.0) {
        ranks[order[i]] = std::min(full[order[i]] / multiple, ranks[order[i]] + 1);
    }
    for (size_t& rank : ranks) {
        rank *= multiple;
    }
    return ranks;
}

}  // namespace kvcodec
