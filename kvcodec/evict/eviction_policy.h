// Which cached rows the published eviction methods give up. Pure functions of what was observed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvcodec {

/// The cells of one sequence as one KV head has them, oldest first.
struct HeadCells {
    std::span<const float> mass;    ///< attention that each has received (attention_mass.h)
    std::span<const uint8_t> kept;  ///< 0: this head's row was evicted before, and stays so
    size_t n_sinks = 0;             ///< so many cells at the start stay whatever their mass
};

/// Rows that one head keeps of n_cells cells: budget * n_cells, rounded up.
size_t capacity_of(double budget, size_t n_cells);

/// H2O, heavy-hitter oracle (Zhang et al. 2023, arXiv 2306.14048): of `capacity` rows one half are the most recent,
/// the other half those of the others that have received most attention so far. Indices to evict, ascending.
std::vector<uint32_t> evicted_by_h2o(const HeadCells& cells, size_t capacity);

/// SnapKV (Li et al. 2024, arXiv 2404.14469): the last `window` cells, whose queries observe, and of the others those
/// that have received most attention from these queries, after max pooling over 7 neighbouring cells. Max and 7 are the
/// settings of the paper's LongBench runs. Indices to evict, ascending.
std::vector<uint32_t> evicted_by_snapkv(const HeadCells& cells, size_t window, size_t capacity);

/// PyramidKV (Cai et al. 2024, arXiv 2406.02069): what layer `layer` of n_layers keeps when the mean over layers is
/// `capacity`. Every layer keeps the observation window; what goes beyond it falls on a line from the lowest layer to
/// the highest, which gets 1/20 of the mean (the paper's beta). Where the line would ask the lowest layer for more than
/// n_cells, it is made flatter. The sum over layers is n_layers * capacity exactly.
size_t pyramidkv_capacity(size_t capacity, size_t n_cells, size_t window, size_t layer, size_t n_layers);

}  // namespace kvcodec
