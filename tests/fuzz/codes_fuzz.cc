// Any bytes as codes: kernels of every instruction set read them, and nothing beyond.
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "bench/bench_codecs.h"
#include "kvcodec/codec/latent/half_codec.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kMostRows = 64;
constexpr size_t kLanes = 4;

std::vector<std::shared_ptr<const Codec>> make_codecs() {
    std::vector<std::shared_ptr<const Codec>> codecs;
    for (const size_t dim : {16, 64, 80, 128}) {
        for (const uint32_t bits : ScalarCodec::kBits) {
            codecs.push_back(std::make_shared<ScalarCodec>(dim, bits));
        }
        codecs.push_back(transform_codec(dim, false));
        codecs.push_back(std::make_shared<HalfCodec>(dim));
        codecs.push_back(dictionary_codec(dim, 256, 8));
        codecs.push_back(dictionary_codec(dim, 1000, 64));
        const auto space = std::make_shared<const LatentSpace>(random_atoms(16, dim), 1, dim, 4);
        codecs.push_back(std::make_shared<LatentCodec>(space, 0, false));
    }
    return codecs;
}

void read(const Codec& codec, std::span<const uint8_t> bytes) {
    const size_t n = std::min(bytes.size() / codec.code_bytes(), kMostRows);
    if (n == 0) {
        return;
    }
    std::vector<std::byte> codes(n * codec.code_bytes());
    std::memcpy(codes.data(), bytes.data(), codes.size());
    const std::vector<std::byte> block = codec.arrange(codes);
    codes.resize(codes.size() + Codec::kCodeSlackBytes);
    std::vector<float> x(n * codec.dim()), table(codec.space() * kLanes, 1.0F), s(n * kLanes, 0.5F), acc(table.size());
    std::vector<uint16_t> rows(n);
    std::iota(rows.begin(), rows.end(), uint16_t{0});
    codec.decode(codes.data(), 0, n, x.data());
    codec.score(table.data(), kLanes, block.data(), rows, s.data());
    codec.accumulate(s.data(), kLanes, block.data(), rows, acc.data());
}

}  // namespace
}  // namespace kvcodec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using Codecs = std::vector<std::shared_ptr<const kvcodec::Codec>>;
    static const std::vector<int64_t> targets = kvcodec::test_targets();
    static const std::vector<Codecs> codecs_of_target = [] {  // made for it: some look at it then
        std::vector<Codecs> all;
        for (const int64_t target : targets) {
            hwy::SetSupportedTargetsForTest(target);
            all.push_back(kvcodec::make_codecs());
        }
        return all;
    }();
    if (size < 2) {
        return 0;
    }
    const size_t target = data[0] % targets.size();
    hwy::SetSupportedTargetsForTest(targets[target]);
    const Codecs& codecs = codecs_of_target[target];
    kvcodec::read(*codecs[data[1] % codecs.size()], {data + 2, size - 2});
    return 0;
}
