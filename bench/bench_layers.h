// Whole layers over random data for the benchmarks: coded caches and the queries that read them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench_codecs.h"
#include "kvcodec/attend/attention.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/codec/mean/rotating_mean.h"
#include "kvcodec/codec/rope.h"
#include "kvcodec/store/layer_store.h"

namespace kvcodec {

/// One layer's heads.
struct BenchShape {
    size_t dim = 64;
    size_t n_head_kv = 1;
    size_t group = 1;  ///< query heads of a KV head

    size_t n_head() const { return n_head_kv * group; }
    size_t row() const { return n_head_kv * dim; }
};
/// SmolLM2-135M and a 1.5B model with grouped queries.
constexpr std::array<BenchShape, 2> kShapes = {{{64, 3, 3}, {128, 2, 6}}};

/// Layers that are coded before RoPE, numbered after bench_codec()'s: heads apart, or all together.
constexpr int64_t kJointTransform = kBenchCodecs;
constexpr int64_t kLatent = kBenchCodecs + 1;
constexpr int64_t kJointLatent = kBenchCodecs + 2;

/// 60 % of the ranks with 8 bits. Directions are not orthogonal, which makes no difference to the time.
inline std::shared_ptr<const LatentSpace> latent_space(size_t n_heads, size_t dim) {
    const size_t row = n_heads * dim;
    const size_t rank = (row * 3 / 5 + 8) / LatentSpace::kRankMultiple * LatentSpace::kRankMultiple;
    const std::vector<float> directions = random_atoms(rank, row);
    return std::make_shared<LatentSpace>(directions, n_heads, dim, 8);
}

/// Whether a layer of this shape can be coded so: heads together make long vectors.
inline bool has_layer_codecs(int64_t number, const BenchShape& shape) {
    const size_t most = number == kJointTransform ? TransformFormat::kMaxDim : ScalarFormat::kMaxDim;
    return (number != kJointTransform && number != kJointLatent) || shape.row() <= most;
}

inline Rope bench_rope(size_t dim) {
    RopeParams params;
    params.pairing = RopeParams::Pairing::kHalves;
    params.n_dims = static_cast<uint32_t>(dim);
    params.freq_base = 1e5F;
    return {params, dim};
}

inline LayerCodecs layer_codecs(int64_t number, const BenchShape& shape) {
    LayerCodecs codecs;
    if (number < kTransform) {
        const auto codec = bench_codec(number, shape.dim);
        codecs.k = codec;
        codecs.v = codec;
        return codecs;
    }
    switch (number) {
        case kTransform:
            codecs.k = transform_codec(shape.dim, true);
            codecs.v = transform_codec(shape.dim, false);
            break;
        case kJointTransform: {
            const auto all_k = transform_codec(shape.row(), true);
            const auto all_v = transform_codec(shape.row(), false);
            for (size_t head = 0; head < shape.n_head_kv; ++head) {
                codecs.k_heads.push_back(std::make_shared<TransformHead>(all_k, head, shape.n_head_kv));
                codecs.v_heads.push_back(std::make_shared<TransformHead>(all_v, head, shape.n_head_kv));
            }
            break;
        }
        default: {
            const size_t together = number == kLatent ? 1 : shape.n_head_kv;
            const auto space = latent_space(together, shape.dim);
            for (size_t head = 0; head < shape.n_head_kv; ++head) {
                codecs.k_heads.push_back(std::make_shared<LatentCodec>(space, head % together, true));
                codecs.v_heads.push_back(std::make_shared<LatentCodec>(space, head % together, false));
            }
        }
    }
    if (!codecs.k_heads.empty()) {
        codecs.k = codecs.k_heads[0];
        codecs.v = codecs.v_heads[0];
    }
    codecs.rope = bench_rope(shape.dim);
    codecs.rope_tables = std::make_shared<RopeTables>(codecs.rope);
    codecs.k_plain_mean = random_rows(shape.row(), 6);
    return codecs;
}

/// One layer's cache, all of it coded.
class CodedLayer {
  public:
    /// n_cells: a multiple of LayerStore::kBlock. Every block holds the same k and v, [LayerStore::kBlock, row].
    CodedLayer(const BenchShape& shape, LayerCodecs codecs, size_t n_cells, std::span<const float> k,
               std::span<const float> v)
        : shape_(shape), store_(n_cells, shape.row(), shape.row(), true), positions_(n_cells) {
        constexpr size_t kBlock = LayerStore::kBlock;
        store_.set_codecs({n_cells, shape.n_head_kv, shape.dim, shape.dim}, std::move(codecs));
        std::iota(positions_.begin(), positions_.end(), 0);
        std::vector<uint32_t> cells(kBlock);
        SingleThread team;
        for (size_t block = 0; block < n_cells; block += kBlock) {
            for (size_t i = 0; i < kBlock; ++i) {
                cells[i] = static_cast<uint32_t>(block + i);
                store_.write(Side::kK, block + i, k.data() + i * shape.row());
                store_.write(Side::kV, block + i, v.data() + i * shape.row());
            }
            store_.encode(cells, positions_.data(), team);
        }
    }

    const LayerStore& store() const { return store_; }
    /// Attention of q [n_head, n_tokens, dim] to all cells; out: [n_tokens, n_head, dim]. mask: half precision
    /// [n_tokens, n_cells] or empty.
    AttentionCall call(std::span<const float> q, std::span<const uint16_t> mask, std::span<float> out) const {
        AttentionCall call;
        call.q = q.data();
        call.n_head = shape_.n_head();
        call.n_tokens = q.size() / (call.n_head * shape_.dim);
        call.q_token_stride = shape_.dim;
        call.q_head_stride = call.n_tokens * shape_.dim;
        call.n_cells = positions_.size();
        call.mask = mask.empty() ? nullptr : mask.data();
        call.mask_stride = call.n_cells;
        call.scale = 1.0F / std::sqrt(static_cast<float>(shape_.dim));
        call.out = out.data();
        call.out_token_stride = call.n_head * shape_.dim;
        call.out_head_stride = shape_.dim;
        call.positions = positions_.data();
        return call;
    }

  private:
    BenchShape shape_;
    LayerStore store_;
    std::vector<int32_t> positions_;
};

}  // namespace kvcodec
