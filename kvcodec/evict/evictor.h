// Eviction in one layer: watches its attention, and evicts rows of its store by a published method.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/attend/attention.h"
#include "kvcodec/store/layer_store.h"
#include "kvcodec/threads.h"

namespace kvcodec {

struct EvictionSettings {
    enum class Method : uint8_t { kH2o, kSnapKv, kPyramidKv };

    Method method = Method::kH2o;
    double budget = 1;    ///< share of (cell, KV head) rows that are kept, mean over layers
    uint32_t sinks = 0;   ///< positions at the start that stay, within the budget
    size_t layer = 0;     ///< rank of this layer,
    size_t n_layers = 1;  ///< of so many
};

/// Deviations from the papers, all methods:
/// - A text is read in several batches. Capacity is the budget's share of the cells read so far, and grows with them;
///   every batch ends in a selection. The papers read a whole prompt exactly, then evict once.
/// - The KV heads of grouped-query attention select by the sum over their query heads. The released code of SnapKV and
///   PyramidKV repeats keys for each query head first, and thereby stores more.
/// - Keys keep the positions that they were rotated with, as in the papers' main experiments.
/// - Queries of the batch that is being read see its own keys before any of them is evicted.
/// - H2O's sums are not in a state that the host saves, nor are the positions of cells that have lost every head:
/// restored,
///   they count for the capacity, but have no place among the other cells.
/// - Capacity counts the cells that the last query token sees. If a stream holds several sequences, only its sequence
///   is reduced, and queries of the others take part in what is observed.
/// - A cell's memory comes back when its last head is evicted, so memory shrinks less than the rate says. H2O's
///   sums (4 bytes a row) are not in the rate, but in the resident bytes.
/// H2O: selects once 16 cells without a decision are there, which is after every prompt batch and every 16 single
/// steps. SnapKV, PyramidKV: a batch of fewer than 32 tokens is no prompt; its cells stay until the next prompt batch.
/// A capacity below 32 cuts the observation window, which the papers never meet.
///
/// Unverified: no published figure has been reproduced with this code.
class Evictor {
  public:
    /// Queries at the end of a prompt batch that SnapKV looks at; the setting of the paper's LongBench runs.
    static constexpr size_t kObservationWindow = 32;
    /// H2O selects once there are so many cells without a decision.
    static constexpr size_t kCellsBetweenDecisions = 16;

    Evictor(const EvictionSettings& settings, const LayerGeometry& geometry);

    /// To be called after attention, with the same call. Returns the cells that a decision was made on, kept or not;
    /// none if it was not time for one. The span is valid until the next call.
    std::span<const uint32_t> observe(LayerStore& store, const AttentionCall& call, Team& team);

    /// The cell holds something else from now on.
    void forget(size_t cell);
    void copy_cell(size_t from, size_t to);
    void clear();

    bool is_decided(size_t cell) const { return decided_[cell] != 0; }
    /// Rows (one cell, one KV head) that a decision was made on, and how many of them are left.
    struct Rows {
        uint64_t decided = 0;
        uint64_t kept = 0;
    };
    Rows rows(const LayerStore& store) const;
    /// Kept rows per decided row; the budget before the first decision.
    double share(const LayerStore& store) const;

    /// E.g. "h2o, 20 % of rows kept".
    std::string describe() const;
    size_t resident_bytes() const;

  private:
    void find_cells(const LayerStore& store, const AttentionCall& call);
    size_t capacity() const;

    EvictionSettings settings_;
    LayerGeometry geometry_;
    std::vector<float> mass_;       // H2O: [n_head_kv, n_cells]; else of one call, [n_head_kv, call.n_cells]
    std::vector<uint8_t> decided_;  // [n_cells]
    std::vector<uint32_t> cells_;   // that the last query token sees: n_unplaced_ emptied ones, the others oldest first
    size_t n_unplaced_ = 0;
    size_t n_sinks_ = 0;  // of the others
};

}  // namespace kvcodec
