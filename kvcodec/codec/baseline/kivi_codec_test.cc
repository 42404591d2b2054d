#include "kvcodec/codec/baseline/kivi_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {
namespace {

constexpr size_t kGroup = 32;
// Rounding error of a scale times 15 and a minimum below half precision's normal numbers.
constexpr float kSubnormal = 16 * 0x1p-25F;

struct Shape {
    size_t dim;
    unsigned bits;
};

class KiviKeyCodecTest : public testing::TestWithParam<Shape> {
  protected:
    std::vector<float> random_rows(size_t n, float deviation = 1.0F) {
        std::normal_distribution<float> normal(deviation / 3, deviation);
        std::vector<float> x(n * dim_);
        std::ranges::generate(x, [&] { return half_to_float(float_to_half(normal(rng_))); });
        return x;
    }
    std::vector<std::byte> encode(const std::vector<float>& x) const {
        std::vector<std::byte> codes(x.size() / dim_ * codec_.code_bytes());
        codec_.encode(x.data(), x.size() / dim_, codes.data());
        return codes;
    }
    std::vector<float> decode(const std::vector<std::byte>& codes) const {
        const size_t n = codes.size() / codec_.code_bytes();
        std::vector<float> x(n * dim_);
        codec_.decode(codes.data(), 0, n, x.data());
        return x;
    }

    const size_t dim_ = GetParam().dim;
    const unsigned bits_ = GetParam().bits;
    const KiviKeyCodec codec_{dim_, bits_};
    std::mt19937 rng_{4};
};

TEST_P(KiviKeyCodecTest, RoundsEachChannelOverATokenGroup) {
    const int largest = (1 << bits_) - 1;
    for (const float deviation : {1e-4F, 1.0F, 900.0F}) {
        for (const size_t n_groups : {1, 2, 5}) {
            const std::vector<float> x = random_rows(n_groups * kGroup, deviation);
            const std::vector<float> y = decode(encode(x));
            for (size_t group = 0; group < n_groups; ++group) {
                for (size_t channel = 0; channel < dim_; ++channel) {
                    const auto at = [&](size_t row) { return (group * kGroup + row) * dim_ + channel; };
                    float low = x[at(0)];
                    float high = x[at(0)];
                    for (size_t row = 0; row < kGroup; ++row) {
                        low = std::min(low, x[at(row)]);
                        high = std::max(high, x[at(row)]);
                    }
                    const float scale = (high - low) / static_cast<float>(largest);
                    for (size_t row = 0; row < kGroup; ++row) {
                        const auto q = static_cast<int>((x[at(row)] - low) * (1 / scale) + 0.5F);
                        const float expected =
                            half_to_float(float_to_half(scale)) * static_cast<float>(std::min(q, largest)) +
                            half_to_float(float_to_half(low));
                        ASSERT_FLOAT_EQ(y[at(row)], expected) << "row " << row << " channel " << channel;
                        const float rounding =
                            std::ldexp(std::abs(low) + static_cast<float>(largest) * scale, -11) + kSubnormal;
                        ASSERT_LE(std::abs(x[at(row)] - y[at(row)]), scale / 2 + rounding);
                    }
                }
            }
        }
    }
}

TEST_P(KiviKeyCodecTest, EachRowCarriesItsShareOfTheTable) {
    const std::vector<float> x = random_rows(kGroup);
    const std::vector<std::byte> codes = encode(x);
    const std::vector<float> y = decode(codes);
    std::vector<std::byte> bytes;
    for (size_t row = 0; row < kGroup; ++row) {
        const auto code = codes.begin() + static_cast<std::ptrdiff_t>(row * codec_.code_bytes());
        bytes.insert(bytes.end(), code + static_cast<std::ptrdiff_t>(dim_ * bits_ / 8),
                     code + static_cast<std::ptrdiff_t>(codec_.code_bytes()));
    }
    std::vector<uint16_t> table(2 * dim_);
    ASSERT_EQ(bytes.size(), table.size() * sizeof(uint16_t));
    std::memcpy(table.data(), bytes.data(), bytes.size());
    for (size_t row = 0; row < kGroup; ++row) {
        for (size_t i = 0; i < dim_; ++i) {
            const std::byte byte = codes[row * codec_.code_bytes() + i * bits_ / 8];
            const unsigned q = std::to_integer<unsigned>(byte) >> (i * bits_ % 8) & ((1U << bits_) - 1U);
            ASSERT_FLOAT_EQ(y[row * dim_ + i],
                            half_to_float(table[2 * i]) * static_cast<float>(q) + half_to_float(table[2 * i + 1]));
        }
    }
}

// What the method is for: a channel that is large in every token costs the others nothing.
TEST_P(KiviKeyCodecTest, OutlierChannelsDoNotHarmOthers) {
    constexpr size_t kOutlier = 5;
    std::vector<float> x = random_rows(kGroup);
    const std::vector<float> before = decode(encode(x));
    for (size_t row = 0; row < kGroup; ++row) {
        x[row * dim_ + kOutlier] = row == 3 ? std::nanf("") : x[row * dim_ + kOutlier] * 1000 + 5000;
    }
    const std::vector<float> after = decode(encode(x));
    for (size_t i = 0; i < x.size(); ++i) {
        if (i % dim_ != kOutlier) {
            ASSERT_EQ(after[i], before[i]);
        } else {
            ASSERT_NE(after[i], before[i]);
        }
    }
}

TEST_P(KiviKeyCodecTest, ConstantChannelsAreExact) {
    std::vector<float> x(2 * kGroup * dim_);
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>(i % dim_) * (i < kGroup * dim_ ? 0.5F : -2.0F);
    }
    EXPECT_EQ(decode(encode(x)), x);
}

INSTANTIATE_TEST_SUITE_P(Shapes, KiviKeyCodecTest,
                         testing::Values(Shape{64, 2}, Shape{64, 4}, Shape{80, 2}, Shape{80, 4}, Shape{96, 2},
                                         Shape{96, 4}, Shape{128, 2}, Shape{128, 4}, Shape{256, 2}, Shape{256, 4}),
                         [](const auto& test) {
                             return "Dim" + std::to_string(test.param.dim) + "Bits" + std::to_string(test.param.bits);
                         });

TEST(KiviKeyCodec, CountsBytes) {
    for (const size_t dim : {64, 80, 96, 128, 256}) {
        EXPECT_EQ(KiviKeyCodec(dim, 2).code_bytes() * 10'000, dim * 2 * 1'875);
        EXPECT_EQ(KiviKeyCodec(dim, 4).code_bytes() * 10'000, dim * 2 * 3'125);
    }
    EXPECT_EQ(KiviKeyCodec(64, 2).group_rows(), kGroup);
    EXPECT_EQ(KiviKeyCodec(64, 2).describe(), "KIVI 2 bits, per channel, groups of 32");
}

TEST(KiviKeyCodec, RefusesWhatItCannotCode) {
    EXPECT_THROW(KiviKeyCodec(64, 3), Error);
    EXPECT_THROW(KiviKeyCodec(64, 8), Error);
    EXPECT_THROW(KiviKeyCodec(0, 2), Error);
    EXPECT_THROW(KiviKeyCodec(68, 2), Error);
}

}  // namespace
}  // namespace kvcodec
