// Attention over coded cells: the four steps of a codec, then whole steps of token generation and of a prompt, on the
// shapes of two models. One thread.
#include <benchmark/benchmark.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "bench/bench_codecs.h"
#include "kvcodec/attend/attention.h"
#include "kvcodec/codec/mean/rotating_mean.h"
#include "kvcodec/codec/rope.h"
#include "kvcodec/store/layer_store.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;

/// One layer's heads: SmolLM2-135M and a 1.5B model with grouped queries.
struct Shape {
    size_t dim;
    size_t n_head_kv;
    size_t group;
};
constexpr std::array<Shape, 2> kShapes = {{{64, 3, 3}, {128, 2, 6}}};

/// Rows of one block and head that are all coded.
struct CodedBlock {
    CodedBlock(const Codec& codec, size_t group)
        : lanes((group + Codec::kLaneMultiple - 1) / Codec::kLaneMultiple * Codec::kLaneMultiple),
          codes(kBlock * codec.code_bytes() + Codec::kCodeSlackBytes),
          rows(kBlock),
          q(random_rows(lanes * codec.dim(), 2)),
          table(codec.space() * lanes),
          acc(codec.space() * lanes),
          scores(kBlock * lanes) {
        codec.encode(random_rows(kBlock * codec.dim(), 3).data(), kBlock, codes.data());
        std::iota(rows.begin(), rows.end(), uint16_t{0});
        codec.prepare(q.data(), lanes, 0, codec.space(), table.data());
    }

    size_t lanes;
    std::vector<std::byte> codes;
    std::vector<uint16_t> rows;
    std::vector<float> q, table, acc, scores;
};

void set_codec_label(benchmark::State& state, const Codec& codec) {
    state.SetLabel(codec.describe());
}

void prepare(benchmark::State& state) {
    const Shape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto codec = bench_codec(state.range(1), shape.dim);
    CodedBlock block(*codec, shape.group);
    for (auto _ : state) {
        codec->prepare(block.q.data(), block.lanes, 0, codec->space(), block.table.data());
        benchmark::DoNotOptimize(block.table.data());
        benchmark::ClobberMemory();
    }
    set_codec_label(state, *codec);
}

void score(benchmark::State& state) {
    const Shape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto codec = bench_codec(state.range(1), shape.dim);
    CodedBlock block(*codec, shape.group);
    for (auto _ : state) {
        codec->score(block.table.data(), block.lanes, block.codes.data(), block.rows, block.scores.data());
        benchmark::DoNotOptimize(block.scores.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBlock));
    set_codec_label(state, *codec);
}

void accumulate(benchmark::State& state) {
    const Shape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto codec = bench_codec(state.range(1), shape.dim);
    CodedBlock block(*codec, shape.group);
    const std::vector<float> p(block.scores.size(), 1.0F / kBlock);
    for (auto _ : state) {
        codec->accumulate(p.data(), block.lanes, block.codes.data(), block.rows, block.acc.data());
        benchmark::DoNotOptimize(block.acc.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBlock));
    set_codec_label(state, *codec);
}

void decode(benchmark::State& state) {
    const Shape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto codec = bench_codec(state.range(1), shape.dim);
    const CodedBlock block(*codec, shape.group);
    std::vector<float> x(kBlock * shape.dim);
    for (auto _ : state) {
        codec->decode(block.codes.data(), 0, kBlock, x.data());
        benchmark::DoNotOptimize(x.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBlock));
    set_codec_label(state, *codec);
}

/// The transform codes keys before RoPE, heads apart (kTransform) or together (kJointTransform).
constexpr int64_t kJointTransform = kBenchCodecs;

LayerCodecs layer_codecs(int64_t number, const Shape& shape) {
    if (number < kTransform) {
        const auto codec = bench_codec(number, shape.dim);
        return {codec, codec, {}, {}, {}};
    }
    LayerCodecs codecs;
    if (number == kTransform) {
        codecs.k = transform_codec(shape.dim, true);
        codecs.v = transform_codec(shape.dim, false);
    } else {
        const auto all_k = transform_codec(shape.n_head_kv * shape.dim, true);
        const auto all_v = transform_codec(shape.n_head_kv * shape.dim, false);
        for (size_t head = 0; head < shape.n_head_kv; ++head) {
            codecs.k_heads.push_back(std::make_shared<TransformHead>(all_k, head, shape.n_head_kv));
            codecs.v_heads.push_back(std::make_shared<TransformHead>(all_v, head, shape.n_head_kv));
        }
        codecs.k = codecs.k_heads[0];
        codecs.v = codecs.v_heads[0];
    }
    RopeParams params;
    params.pairing = RopeParams::Pairing::kHalves;
    params.n_dims = static_cast<uint32_t>(shape.dim);
    params.freq_base = 1e5F;
    codecs.rope = Rope(params, shape.dim);
    codecs.rope_tables = std::make_shared<RopeTables>(codecs.rope);
    codecs.k_plain_mean = random_rows(shape.n_head_kv * shape.dim, 6);
    return codecs;
}

/// One layer's attention over a coded cache. Arguments: shape, codec, cells, query tokens.
void attention(benchmark::State& state) {
    const Shape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto n_cells = static_cast<size_t>(state.range(2));
    const auto n_tokens = static_cast<size_t>(state.range(3));
    const size_t row = shape.n_head_kv * shape.dim;
    const size_t n_head = shape.n_head_kv * shape.group;

    LayerStore store(n_cells, row, row, true);
    store.set_codecs({n_cells, shape.n_head_kv, shape.dim, shape.dim}, layer_codecs(state.range(1), shape));
    std::vector<int32_t> positions(n_cells);
    std::iota(positions.begin(), positions.end(), 0);
    const std::vector<float> x = random_rows(kBlock * row, 4);
    std::vector<uint32_t> cells(kBlock);
    SingleThread team;
    for (size_t block = 0; block < n_cells; block += kBlock) {
        for (size_t i = 0; i < kBlock; ++i) {
            cells[i] = static_cast<uint32_t>(block + i);
            store.write(Side::kK, block + i, x.data() + i * row);
            store.write(Side::kV, block + i, x.data() + (kBlock - 1 - i) * row);
        }
        store.encode(cells, positions.data(), team);
    }

    const std::vector<float> q = random_rows(n_tokens * n_head * shape.dim, 5);
    std::vector<float> out(q.size());
    AttentionCall call;
    call.q = q.data();
    call.q_token_stride = shape.dim;
    call.q_head_stride = n_tokens * shape.dim;
    call.n_tokens = n_tokens;
    call.n_head = n_head;
    call.n_cells = n_cells;
    call.scale = 0.125F;
    call.out = out.data();
    call.out_token_stride = n_head * shape.dim;
    call.out_head_stride = shape.dim;
    call.positions = positions.data();
    Attention attend;
    for (auto _ : state) {
        attend.run(store, call, team);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    // Bytes of the codes that are read; items are (query token, cell) pairs.
    state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(n_cells * store.code_bytes_per_token()));
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(n_cells * n_tokens));
    state.SetLabel(store.codecs().k->describe() +
                   (attend.in_code_space(store, call) ? ", in code space" : ", by blocks"));
}

void every_codec(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"shape", "codec"})->ArgsProduct({{0, 1}, benchmark::CreateDenseRange(0, kBenchCodecs - 1, 1)});
}

BENCHMARK(prepare)->Apply(every_codec);
BENCHMARK(score)->Apply(every_codec);
BENCHMARK(accumulate)->Apply(every_codec);
BENCHMARK(decode)->Apply(every_codec);
BENCHMARK(attention)
    ->ArgNames({"shape", "codec", "cells", "tokens"})
    ->ArgsProduct({{0, 1}, {0, 1, 3, 4, kTransform, kJointTransform}, {4096, 16384, 131072}, {1}})
    ->ArgsProduct({{0, 1}, {0, 3, kTransform, kJointTransform}, {4096}, {64}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvcodec
