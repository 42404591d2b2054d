// Which rows of one layer attention cares for most: they get more bits instead of being the last to be evicted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "kvcodec/attend/attention.h"
#include "kvcodec/store/layer_store.h"
#include "kvcodec/threads.h"

namespace kvcodec {

/// Tokens whose queries are looked at: the last twentieth of them, at least one, then as many random ones of those
/// before, none twice.
std::vector<size_t> probe_tokens(size_t n_tokens, std::mt19937& rng);

/// [n_head_kv, call.n_cells]: the attention that each row receives from the queries of the listed tokens, summed over
/// the query heads of a KV head and divided by the number of these tokens that see the cell; 0 where none does.
std::vector<float> normalized_attention(const LayerStore& store, const AttentionCall& call,
                                        std::span<const size_t> tokens, Team& team);

/// Source: ZipCache (He et al., NeurIPS 2024, arXiv 2405.14256, section 4).
///
/// Faithful: normalised attention from probes, 5 % of the tokens recent and 5 % random; of the rows that are coded
/// together the same share is salient in each KV head, and each KV head has its own (as in the released code).
/// Deviations:
///   - Probes are tokens of the batch that is being computed, up to 512 (-ub), in place of a whole prompt; a single
///     step has one probe. Rows that were coded stay as they are.
///   - The sum is divided by the number of probes that see a key, the paper's definition taken literally; the released
///     code divides by all queries that do.
/// Unverified: no published figure has been reproduced with this code.
class SalientRows {
  public:
    explicit SalientRows(double share) : share_(share) {}

    double share() const { return share_; }
    /// [n_head_kv, cells]: 1 for the rows of these cells, about to be coded together, that get more bits. calls: of the
    /// batch being computed, one a stream. Cells of no call count as unseen.
    std::vector<uint8_t> choose(const LayerStore& store, std::span<const AttentionCall> calls,
                                std::span<const uint32_t> cells, Team& team);

  private:
    double share_;
    double owed_ = 0;  // part of a row that earlier choices left over, so that the share holds in the long run
    std::mt19937 rng_;
};

}  // namespace kvcodec
