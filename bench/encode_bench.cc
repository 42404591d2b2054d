// Encoding: orthogonal matching pursuit alone, and whole codecs. One thread.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bench/bench_codecs.h"
#include "kvcodec/codec/dictionary/omp.h"

namespace kvcodec {
namespace {

/// Arguments: dim, atoms, sparsity, vectors in a call.
void omp(benchmark::State& state) {
    const auto dim = static_cast<size_t>(state.range(0));
    const auto n_atoms = static_cast<size_t>(state.range(1));
    const auto n = static_cast<size_t>(state.range(3));
    const OmpOptions options{static_cast<size_t>(state.range(2)), 0.0F};
    const std::vector<float> atoms = random_atoms(n_atoms, dim);
    const std::vector<float> x = random_rows(n * dim, 2);
    std::vector<uint16_t> index(n * options.sparsity);
    std::vector<float> coefficient(n * options.sparsity);
    std::vector<uint8_t> count(n);
    for (auto _ : state) {
        omp_encode(atoms.data(), n_atoms, dim, x.data(), n, options, index.data(), coefficient.data(), count.data(),
                   nullptr);
        benchmark::DoNotOptimize(coefficient.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(n));
}

/// Arguments: dim, codec.
void encode(benchmark::State& state) {
    constexpr size_t kRows = 1536;  // 512 cells of 3 heads
    const auto dim = static_cast<size_t>(state.range(0));
    const auto codec = bench_codec(state.range(1), dim);
    const std::vector<float> x = random_rows(kRows * dim, 2);
    std::vector<std::byte> codes(kRows * codec->code_bytes() + Codec::kCodeSlackBytes);
    for (auto _ : state) {
        codec->encode(x.data(), kRows, codes.data());
        benchmark::DoNotOptimize(codes.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kRows));
    state.SetLabel(codec->describe());
}

BENCHMARK(omp)
    ->ArgNames({"dim", "atoms", "s", "vectors"})
    ->ArgsProduct({{64, 128}, {1024}, {8, 16}, {1, 192, 1536}})
    ->Args({128, 4096, 16, 4096})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(encode)
    ->ArgNames({"dim", "codec"})
    ->ArgsProduct({{64, 128}, benchmark::CreateDenseRange(0, kBenchCodecs - 1, 1)})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvcodec
