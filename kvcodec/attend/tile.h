// What the ways to go through a store share: the query lanes of a tile, the cells of a block that they see, scratch
// memory.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "kvcodec/attend/attention.h"
#include "kvcodec/attend/softmax.h"
#include "kvcodec/half.h"

namespace kvcodec {

// Lanes are padded so that kernels see whole vectors.
inline size_t pad_lanes(size_t lanes) {
    const size_t multiple = lanes <= 4 ? 4 : lanes <= 8 ? 8 : 16;
    return (lanes + multiple - 1) / multiple * multiple;
}

// Hands out consecutive pieces of one allocation, each on a cache line of its own.
class Arena {
  public:
    static constexpr size_t kAlignFloats = 16;
    explicit Arena(float* data) : data_(data) {}
    float* take(size_t n) {
        float* piece = data_ + used_;
        used_ += round_up(n);
        return piece;
    }
    size_t used() const { return used_; }
    static size_t round_up(size_t n) { return (n + kAlignFloats - 1) / kAlignFloats * kAlignFloats; }

  private:
    float* data_;
    size_t used_ = 0;
};

inline float* aligned(std::vector<float>& memory, size_t n) {
    if (memory.size() < n + Arena::kAlignFloats) {
        memory.resize(n + Arena::kAlignFloats);
    }
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (64 - address % 64) % 64 / sizeof(float);
}

inline const uint16_t* mask_row(const AttentionCall& call, size_t token, size_t first) {
    return call.mask + token * call.mask_stride + first;
}

inline float slope_of(const AttentionCall& call, size_t head) {
    return call.slopes == nullptr ? 1.0F : call.slopes[head];
}

// The queries of one KV head: lane = head in group * n_tokens + token, zero beyond.
struct Lanes {
    size_t first_head;
    size_t group;
    size_t first_token;
    size_t n_tokens;
    size_t padded;

    size_t count() const { return group * n_tokens; }
    const float* q(const AttentionCall& call, size_t lane) const {
        return call.q + (first_head + lane / n_tokens) * call.q_head_stride +
               (first_token + lane % n_tokens) * call.q_token_stride;
    }
    float* out(const AttentionCall& call, size_t lane) const {
        return call.out + (first_head + lane / n_tokens) * call.out_head_stride +
               (first_token + lane % n_tokens) * call.out_token_stride;
    }
};

// What some tokens' masks let them see of the cells of a block.
struct SeenCells {
    uint64_t any = 0;    // cell i: whether any token sees it
    bool mixed = false;  // whether the mask does more than show all cells to all tokens

    // Cells [first, first + n) of the stream, tokens [first_token, first_token + n_tokens).
    static SeenCells of(const AttentionCall& call, size_t first_token, size_t n_tokens, size_t first, size_t n) {
        constexpr uint16_t kHalfMinusInfinity = 0xFC00;
        const uint64_t all = all_of(n);
        if (call.mask == nullptr) {
            return {all, false};
        }
        if (all_open(mask_row(call, first_token, first), call.mask_stride, n_tokens, n)) {
            return {all, call.slopes != nullptr};
        }
        SeenCells seen{0, call.slopes != nullptr};
        for (size_t token = first_token; token < first_token + n_tokens; ++token) {
            const uint16_t* mask = mask_row(call, token, first);
            switch (classify_mask(mask, n)) {
                case MaskKind::kHidden:
                    seen.mixed = true;
                    break;
                case MaskKind::kOpen:
                    seen.any |= all;
                    break;
                case MaskKind::kMixed:
                    seen.mixed = true;
                    for (size_t row = 0; row < n; ++row) {
                        seen.any |= static_cast<uint64_t>(mask[row] != kHalfMinusInfinity) << row;
                    }
                    break;
            }
        }
        return seen;
    }
    static uint64_t all_of(size_t n) { return n == LayerStore::kBlock ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }
};

// The cells of a block that any of the tokens sees, and the bias that the others get.
class BlockMask {
  public:
    static constexpr size_t kBlock = LayerStore::kBlock;

    // bias_memory: [kBlock, lanes.padded] floats.
    BlockMask(const AttentionCall& call, const Lanes& lanes, float* bias_memory)
        : call_(call), lanes_(lanes), bias_(bias_memory) {}

    // Looks at cells [first, first + n) of the stream, of which those set in `evicted` have no row left; false when
    // nobody sees any of them.
    bool look(size_t first, size_t n, uint64_t evicted) {
        return look(SeenCells::of(call_, lanes_.first_token, lanes_.n_tokens, first, n), first, n, evicted);
    }
    bool look(const SeenCells& cells, size_t first, size_t n, uint64_t evicted) {
        first_ = first;
        n_rows_ = 0;
        mixed_ = cells.mixed;
        const uint64_t seen = cells.any & ~evicted;
        if (seen == SeenCells::all_of(n)) {
            std::iota(rows_.begin(), rows_.end(), uint16_t{0});
            n_rows_ = n;
            return true;
        }
        for (size_t row = 0; row < n; ++row) {
            if (((seen >> row) & 1) != 0) {
                rows_[n_rows_++] = static_cast<uint16_t>(row);
            }
        }
        return n_rows_ > 0;
    }

    std::span<uint16_t> rows() { return {rows_.data(), n_rows_}; }

    // [rows().size(), lanes] in the present order of rows(), or null when every row is open to every lane.
    const float* bias() const {
        if (!mixed_) {
            return nullptr;
        }
        for (size_t token = 0; token < lanes_.n_tokens; ++token) {
            const uint16_t* mask = mask_row(call_, lanes_.first_token + token, first_);
            for (size_t i = 0; i < n_rows_; ++i) {
                const float value = half_to_float(mask[rows_[i]]);
                for (size_t g = 0; g < lanes_.group; ++g) {
                    bias_[i * lanes_.padded + g * lanes_.n_tokens + token] =
                        value * slope_of(call_, lanes_.first_head + g);
                }
            }
        }
        for (size_t i = 0; i < n_rows_; ++i) {
            std::fill(bias_ + i * lanes_.padded + lanes_.count(), bias_ + (i + 1) * lanes_.padded, 0.0F);
        }
        return bias_;
    }

  private:
    const AttentionCall& call_;
    const Lanes& lanes_;
    float* bias_;
    std::array<uint16_t, kBlock> rows_;
    size_t n_rows_ = 0;
    size_t first_ = 0;
    bool mixed_ = false;
};

// Adds the sink logit of each lane's head to the softmax; returns the factor for what was accumulated so far.
inline float join_sink(const AttentionCall& call, const Lanes& lanes, size_t lane, float max, float& sum) {
    if (call.sinks == nullptr) {
        return 1;
    }
    const float sink = call.sinks[lanes.first_head + lane / lanes.n_tokens];
    if (sink <= max) {
        sum += max == -INFINITY ? 0 : std::exp(sink - max);
        return 1;
    }
    const float factor = std::exp(max - sink);
    sum = sum * factor + 1;
    return factor;
}

}  // namespace kvcodec
