// Attention of a batch of queries over one layer's store.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcodec/store/layer_store.h"
#include "kvcodec/threads.h"

namespace kvcodec {

/// One stream's queries and where the result goes. Strides in elements. Semantics as ggml's FLASH_ATTN_EXT.
struct AttentionCall {
    const float* q = nullptr;  ///< [n_head, n_tokens, dim_k] with the strides below
    size_t q_token_stride = 0;
    size_t q_head_stride = 0;
    size_t n_tokens = 0;
    size_t n_head = 0;
    size_t first_cell = 0;           ///< of the stream; a multiple of LayerStore::kBlock
    size_t n_cells = 0;              ///< cells looked at
    const uint16_t* mask = nullptr;  ///< half precision [n_tokens, n_cells], added to the scores; null = none
    size_t mask_stride = 0;
    float scale = 1.0F;
    float softcap = 0.0F;           ///< s <- softcap * tanh(s / softcap); 0 = off
    const float* slopes = nullptr;  ///< [n_head] ALiBi factors of the mask; null = 1
    const float* sinks = nullptr;   ///< [n_head] logits that join the softmax without a value; null = none
    float* out = nullptr;           ///< [n_tokens, n_head, dim_v] with the strides below
    size_t out_token_stride = 0;
    size_t out_head_stride = 0;
    const int32_t* positions = nullptr;  ///< by cell (of the whole cache); null where codecs need none
};

/// Where the time of attention goes, in nanoseconds summed over threads.
struct AttentionTimes {
    enum Part : uint8_t { kTables, kScore, kSoftmax, kAccumulate, kDense, kCombine, kBlocks, kParts };
    static constexpr std::array<const char*, kParts> kNames = {"tables",     "score",   "softmax",  "accumulate",
                                                               "dense rows", "combine", "by blocks"};
    std::array<std::atomic<int64_t>, kParts> ns{};
};

/// Computes attention and keeps the scratch memory it needs between calls.
///
/// Two ways. In code space, for few lanes (token generation): scores come from tables, values are accumulated per code,
/// nothing is rebuilt. By blocks, for many lanes (prompts) and short caches: each block of cells is decoded once per
/// tile of lanes and multiplied densely, which costs less there than tables of many lanes, and of 16 lanes or more in
/// 16 bits where the processor has the instruction for it (short_gemm.h). Codecs without a code space are always
/// attended to by blocks, except that values stay in code space where only keys, coded before RoPE, have none.
class Attention {
  public:
    /// Lanes (query heads of one KV head x query tokens) up to which code space is considered.
    static constexpr size_t kMaxCodeLanes = 32;

    /// crossover: cells from which code space is used; negative = by estimated cost.
    /// times: null, or what the time of every part is added to, at the cost of reading a clock between them.
    explicit Attention(int crossover = -1, AttentionTimes* times = nullptr);

    void run(const LayerStore& store, const AttentionCall& call, Team& team);
    /// Whether run() would work in code space.
    bool in_code_space(const LayerStore& store, const AttentionCall& call) const;
    size_t scratch_bytes() const { return scratch_.size() * sizeof(float); }

  private:
    void run_code_space(const LayerStore& store, const AttentionCall& call, Team& team);
    void run_blocks(const LayerStore& store, const AttentionCall& call, Team& team);

    int crossover_;
    AttentionTimes* times_;
    bool in_shorts_;  // whether prompts are multiplied by ShortGemm
    std::vector<float> scratch_;
};

}  // namespace kvcodec
