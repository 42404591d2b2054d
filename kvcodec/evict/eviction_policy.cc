#include "kvcodec/evict/eviction_policy.h"

#include <algorithm>
#include <cmath>

namespace kvcodec {
namespace {

// Of the rows that are still kept, all but `capacity`: sinks and the n_recent last stay, of those between the ones with
// the highest score. Equal scores: the later one stays.
std::vector<uint32_t> all_but_best(const HeadCells& cells, std::span<const float> score, size_t n_recent,
                                   size_t capacity) {
    std::vector<uint32_t> rows;
    size_t n_sinks = 0;
    for (uint32_t i = 0; i < cells.kept.size(); ++i) {
        if (cells.kept[i] != 0) {
            rows.push_back(i);
            n_sinks += i < cells.n_sinks ? 1 : 0;
        }
    }
    if (rows.size() <= capacity) {
        return {};
    }
    n_sinks = std::min(n_sinks, capacity);
    n_recent = std::min(n_recent, capacity - n_sinks);
    const auto first = rows.begin() + static_cast<std::ptrdiff_t>(n_sinks);
    const auto last = rows.end() - static_cast<std::ptrdiff_t>(n_recent);
    const auto lost = first + static_cast<std::ptrdiff_t>(capacity - n_sinks - n_recent);
    std::nth_element(first, lost, last,
                     [&](uint32_t a, uint32_t b) { return score[a] > score[b] || (score[a] == score[b] && a > b); });
    std::vector<uint32_t> evicted(lost, last);
    std::sort(evicted.begin(), evicted.end());
    return evicted;
}

}  // namespace

size_t capacity_of(double budget, size_t n_cells) {
    // 7 % of 100 is 7, not the 7.000000000000001 of the product.
    constexpr double kRounding = 1e-9;
    return static_cast<size_t>(std::ceil(budget * static_cast<double>(n_cells) - kRounding));
}

std::vector<uint32_t> evicted_by_h2o(const HeadCells& cells, size_t capacity) {
    return all_but_best(cells, cells.mass, capacity - capacity / 2, capacity);
}

std::vector<uint32_t> evicted_by_snapkv(const HeadCells& cells, size_t window, size_t capacity) {
    constexpr size_t kReach = 3;  // to either side: a kernel of 7
    const size_t n_observed = cells.mass.size() - std::min(window, cells.mass.size());
    std::vector<float> pooled(cells.mass.size(), 0.0F);
    for (size_t i = 0; i < n_observed; ++i) {
        const auto first = cells.mass.begin() + static_cast<std::ptrdiff_t>(i - std::min(i, kReach));
        const auto last = cells.mass.begin() + static_cast<std::ptrdiff_t>(std::min(i + kReach + 1, n_observed));
        pooled[i] = *std::max_element(first, last);
    }
    return all_but_best(cells, pooled, window, capacity);
}

size_t pyramidkv_capacity(size_t capacity, size_t n_cells, size_t window, size_t layer, size_t n_layers) {
    constexpr double kBeta = 20;
    const auto everywhere = static_cast<double>(std::min(window, capacity));
    const double mean = static_cast<double>(capacity) - everywhere;
    const double most = std::min(2 * mean - mean / kBeta, static_cast<double>(n_cells) - everywhere);
    const double least = 2 * mean - most;
    const double step = n_layers > 1 ? (most - least) / static_cast<double>(n_layers - 1) : 0;
    // Rounding the sum of all layers below keeps the total exact.
    const auto below = [&](size_t n) {
        const auto count = static_cast<double>(n);
        const double highest = n_layers > 1 ? most : mean;
        return std::llround(count * (everywhere + highest) - step * count * (count - 1) / 2);
    };
    return static_cast<size_t>(below(layer + 1) - below(layer));
}

}  // namespace kvcodec
