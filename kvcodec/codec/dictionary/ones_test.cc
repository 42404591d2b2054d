#include "kvcodec/codec/dictionary/ones.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <vector>

#include "kvcodec/target.h"

namespace kvcodec {
namespace {

class OnesTest : public testing::TestWithParam<bool> {};

TEST_P(OnesTest, FindsWhatABitByBitReaderFinds) {
    const bool vbmi2 = GetParam();
    if (vbmi2 && !has_avx512_vnni()) {
        GTEST_SKIP() << "this machine's AVX-512 lacks the newer byte instructions";
    }
    std::mt19937 rng(7);
    for (size_t n_bits = 1; n_bits <= 192; ++n_bits) {
        for (const size_t first : {size_t{0}, size_t{3}, size_t{40 + rng() % 64}, size_t{47}}) {
            // Readers may touch the 9 bytes from the one on in which the last 64 bits at most begin.
            const size_t last_word = first + (n_bits - 1) / 64 * 64;
            constexpr size_t kCodes = 5;
            const std::vector<unsigned> share = {0, 1, 4, 7, 8};  // of ones, in eighths: codes may hold anything
            std::vector<std::vector<uint8_t>> codes;
            std::vector<const uint8_t*> pointers;
            for (size_t i = 0; i < kCodes; ++i) {
                codes.emplace_back(std::max((first + n_bits + 7) / 8, last_word / 8 + 9));
                for (size_t bit = 0; bit < 8 * codes[i].size(); ++bit) {
                    const unsigned one = rng() % 8 < share[i] ? 1 : 0;
                    codes[i][bit / 8] = static_cast<uint8_t>(codes[i][bit / 8] | one << bit % 8);
                }
            }
            std::ranges::transform(codes, std::back_inserter(pointers), [](const auto& code) { return code.data(); });
            const size_t most = 1 + rng() % kMaxOnes;
            std::vector<uint8_t> position(kCodes * kOnesStride);
            std::vector<size_t> count(kCodes, 77);
            find_ones(pointers.data(), kCodes, {first, n_bits}, most, vbmi2, position.data(), count.data());
            for (size_t i = 0; i < kCodes; ++i) {
                std::vector<uint8_t> expected;
                for (size_t bit = 0; bit < n_bits && expected.size() < most; ++bit) {
                    if ((codes[i][(first + bit) / 8] >> (first + bit) % 8 & 1) != 0) {
                        expected.push_back(static_cast<uint8_t>(bit));
                    }
                }
                ASSERT_EQ(count[i], expected.size()) << n_bits << " bits from " << first << ", code " << i;
                const uint8_t* found = &position[i * kOnesStride];
                ASSERT_EQ(std::vector<uint8_t>(found, found + expected.size()), expected)
                    << n_bits << " bits from " << first << ", code " << i;
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Ways, OnesTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "Compressing" : "ByTable"; });

}  // namespace
}  // namespace kvcodec
