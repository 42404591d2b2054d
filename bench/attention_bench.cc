// Attention over coded cells: the four steps of a codec, the rotating mean of keys, then whole steps of token
// generation and of a prompt, on the shapes of two models. One thread.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "bench/bench_layers.h"
#include "kvcodec/attend/attention.h"
#include "kvcodec/codec/mean/rotating_mean.h"
#include "kvcodec/store/layer_store.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;

/// Rows of one block and head that are all coded.
struct CodedBlock {
    CodedBlock(const Codec& codec, size_t group)
        : lanes((group + Codec::kLaneMultiple - 1) / Codec::kLaneMultiple * Codec::kLaneMultiple),
          codes(kBlock * codec.code_bytes()),
          rows(kBlock),
          q(random_rows(lanes * codec.dim(), 2)),
          table(codec.space() * lanes),
          acc(codec.space() * lanes),
          scores(kBlock * lanes) {
        codec.encode(random_rows(kBlock * codec.dim(), 3).data(), kBlock, codes.data());
        block = codec.arrange(codes);
        codes.resize(codes.size() + Codec::kCodeSlackBytes);
        std::iota(rows.begin(), rows.end(), uint16_t{0});
        codec.prepare(q.data(), lanes, 0, codec.space(), table.data());
    }

    size_t lanes;
    std::vector<std::byte> codes;
    std::vector<std::byte> block;  // codes as a store has them
    std::vector<uint16_t> rows;
    std::vector<float> q, table, acc, scores;
};

void set_codec_label(benchmark::State& state, const Codec& codec) {
    state.SetLabel(codec.describe());
}

void prepare(benchmark::State& state) {
    const BenchShape& shape = kShapes[static_cast<size_t>(state.range(0))];
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
    const BenchShape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto codec = bench_codec(state.range(1), shape.dim);
    CodedBlock block(*codec, shape.group);
    std::vector<std::byte> rounded(codec->rounded_bytes(block.lanes));
    codec->round(block.table.data(), block.lanes, rounded.data());
    for (auto _ : state) {
        if (rounded.empty()) {
            codec->score(block.table.data(), block.lanes, block.block.data(), block.rows, block.scores.data());
        } else {
            codec->score_rounded(rounded.data(), block.lanes, block.block.data(), block.rows, block.scores.data());
        }
        benchmark::DoNotOptimize(block.scores.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBlock));
    set_codec_label(state, *codec);
}

void accumulate(benchmark::State& state) {
    const BenchShape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto codec = bench_codec(state.range(1), shape.dim);
    CodedBlock block(*codec, shape.group);
    const std::vector<float> p(block.scores.size(), 1.0F / kBlock);
    for (auto _ : state) {
        codec->accumulate(p.data(), block.lanes, block.block.data(), block.rows, block.acc.data());
        benchmark::DoNotOptimize(block.acc.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBlock));
    set_codec_label(state, *codec);
}

void decode(benchmark::State& state) {
    const BenchShape& shape = kShapes[static_cast<size_t>(state.range(0))];
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

/// What the rotating mean of keys adds to the scores of one block and head.
void mean_score(benchmark::State& state) {
    const BenchShape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const size_t lanes = (shape.group + Codec::kLaneMultiple - 1) / Codec::kLaneMultiple * Codec::kLaneMultiple;
    const RotatingMean mean(std::make_shared<RopeTables>(bench_rope(shape.dim)), random_rows(shape.dim, 6), 1);
    std::vector<float> q = random_rows(lanes * shape.dim, 2);
    std::fill(q.begin() + static_cast<std::ptrdiff_t>(shape.group * shape.dim), q.end(), 0.0F);
    std::vector<float> prepared(mean.prepared_floats(lanes)), s(kBlock * lanes);
    mean.prepare(0, q.data(), lanes, prepared.data());
    std::vector<int32_t> positions(kBlock);
    std::iota(positions.begin(), positions.end(), 4096);
    for (auto _ : state) {
        mean.score(prepared.data(), lanes, positions.data(), kBlock, s.data());
        benchmark::DoNotOptimize(s.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kBlock));
}

/// One layer's attention over a coded cache. Arguments: shape, codec, cells, query tokens.
void attention(benchmark::State& state) {
    const BenchShape& shape = kShapes[static_cast<size_t>(state.range(0))];
    const auto n_cells = static_cast<size_t>(state.range(2));
    const auto n_tokens = static_cast<size_t>(state.range(3));
    const std::vector<float> k = random_rows(kBlock * shape.row(), 4), v = random_rows(kBlock * shape.row(), 7);
    const CodedLayer layer(shape, layer_codecs(state.range(1), shape), n_cells, k, v);
    const LayerStore& store = layer.store();
    const std::vector<float> q = random_rows(n_tokens * shape.n_head() * shape.dim, 5);
    std::vector<float> out(q.size());
    const AttentionCall call = layer.call(q, {}, out);
    SingleThread team;
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
BENCHMARK(mean_score)->ArgName("shape")->DenseRange(0, 1, 1);
BENCHMARK(attention)
    ->ArgNames({"shape", "codec", "cells", "tokens"})
    ->ArgsProduct(
        {{0, 1}, {0, 1, 3, 4, kTransform, kJointTransform, kLatent, kJointLatent}, {4096, 16384, 131072}, {1}})
    ->ArgsProduct({{0, 1}, {0, 3, kTransform, kJointTransform}, {4096}, {64}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvcodec
