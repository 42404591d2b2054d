#include "kvcodec/codec/baseline/zipcache_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec {
namespace {

constexpr size_t kGroup = 32;

float to_half_and_back(float value) {
    return half_to_float(float_to_half(value));
}

class ZipCacheCodecTest : public testing::TestWithParam<size_t> {
  protected:
    std::vector<float> random_rows(size_t n, float deviation = 1.0F) {
        std::normal_distribution<float> normal(deviation / 3, deviation);
        std::vector<float> x(n * dim_);
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = to_half_and_back(normal(rng_) * (i % dim_ % 7 == 2 ? 8.0F : 1.0F));
        }
        return x;
    }
    std::vector<uint8_t> random_marks(size_t n, unsigned one_in) {
        std::vector<uint8_t> salient(n);
        std::ranges::generate(salient, [&] { return rng_() % one_in == 0 ? 1 : 0; });
        return salient;
    }
    std::vector<float> decoded(const Codec& codec, const std::vector<float>& x, const std::vector<uint8_t>& salient) {
        codes_.resize(salient.size() * codec.code_bytes());
        codec.encode_mixed(x.data(), salient.size(), salient.data(), codes_.data());
        std::vector<float> y(x.size());
        codec.decode(codes_.data(), 0, salient.size(), y.data());
        return y;
    }

    const size_t dim_ = GetParam();
    const ZipCacheKeyCodec keys_{dim_};
    const ZipCacheValueCodec values_{dim_};
    std::vector<std::byte> codes_;
    std::mt19937 rng_{6};
};

TEST_P(ZipCacheCodecTest, KeysAreRoundedPerChannelOverAGroup) {
    for (const float deviation : {1e-2F, 1.0F, 900.0F}) {
        for (const size_t n_groups : {1, 2, 5}) {
            const std::vector<float> x = random_rows(n_groups * kGroup, deviation);
            const std::vector<uint8_t> salient = random_marks(n_groups * kGroup, 3);
            const std::vector<float> y = decoded(keys_, x, salient);
            for (size_t i = 0; i < n_groups * dim_; ++i) {
                const auto at = [&](size_t row) { return (i / dim_ * kGroup + row) * dim_ + i % dim_; };
                float low = x[at(0)];
                float high = x[at(0)];
                for (size_t row = 1; row < kGroup; ++row) {
                    low = std::min(low, x[at(row)]);
                    high = std::max(high, x[at(row)]);
                }
                for (size_t row = 0; row < kGroup; ++row) {
                    const float largest = salient[i / dim_ * kGroup + row] != 0 ? 15.0F : 3.0F;
                    const float level = std::floor((x[at(row)] - low) / (high - low) * largest + 0.5F);
                    const float expected =
                        to_half_and_back((high - low) / 15) * 15 / largest * level + to_half_and_back(low);
                    // A level that lies between two may round either way.
                    const float between = (x[at(row)] - low) / (high - low) * largest;
                    if (std::abs(between - std::floor(between) - 0.5F) > 1e-3F) {
                        ASSERT_NEAR(y[at(row)], expected, 1e-5F * (std::abs(low) + high - low));
                    }
                    const float rounding = std::ldexp(std::abs(low) + high - low, -10);
                    ASSERT_LE(std::abs(x[at(row)] - y[at(row)]), (high - low) / largest / 2 + rounding);
                }
            }
        }
    }
}

TEST_P(ZipCacheCodecTest, ValuesAreNormalisedPerChannelAndRoundedPerToken) {
    for (const float deviation : {1e-2F, 1.0F, 900.0F}) {
        for (const size_t n_groups : {1, 2, 5}) {
            const std::vector<float> x = random_rows(n_groups * kGroup, deviation);
            const std::vector<uint8_t> salient = random_marks(n_groups * kGroup, 3);
            const std::vector<float> y = decoded(values_, x, salient);
            for (size_t group = 0; group < n_groups; ++group) {
                std::vector<float> c(dim_);
                for (size_t i = 0; i < kGroup * dim_; ++i) {
                    c[i % dim_] = std::max(c[i % dim_], std::abs(x[group * kGroup * dim_ + i]));
                }
                std::ranges::transform(c, c.begin(),
                                       [](float largest) { return to_half_and_back(std::sqrt(largest)); });
                for (size_t row = group * kGroup; row < (group + 1) * kGroup; ++row) {
                    const float largest = salient[row] != 0 ? 15.0F : 3.0F;
                    float low = INFINITY;
                    float high = -INFINITY;
                    for (size_t i = 0; i < dim_; ++i) {
                        low = std::min(low, x[row * dim_ + i] * (1 / c[i]));
                        high = std::max(high, x[row * dim_ + i] * (1 / c[i]));
                    }
                    const float scale = (high - low) / largest;
                    for (size_t i = 0; i < dim_; ++i) {
                        const float level = (x[row * dim_ + i] * (1 / c[i]) - low) / scale;
                        const float expected =
                            c[i] * (to_half_and_back(scale) * std::floor(level + 0.5F) + to_half_and_back(low));
                        if (std::abs(level - std::floor(level) - 0.5F) > 1e-3F) {
                            ASSERT_NEAR(y[row * dim_ + i], expected, 1e-5F * c[i] * (high - low));
                        }
                        ASSERT_LE(std::abs(x[row * dim_ + i] - y[row * dim_ + i]),
                                  c[i] * (scale / 2 + std::ldexp(high - low, -10)));
                    }
                }
            }
        }
    }
}

TEST_P(ZipCacheCodecTest, SalientRowsLoseLess) {
    const std::vector<float> x = random_rows(8 * kGroup);
    const std::vector<uint8_t> salient = random_marks(8 * kGroup, 2);
    for (const Codec* codec : {static_cast<const Codec*>(&keys_), static_cast<const Codec*>(&values_)}) {
        const std::vector<float> y = decoded(*codec, x, salient);
        double error[2] = {};
        double energy[2] = {};
        for (size_t i = 0; i < x.size(); ++i) {
            error[salient[i / dim_]] += (x[i] - y[i]) * (x[i] - y[i]);
            energy[salient[i / dim_]] += x[i] * x[i];
        }
        // 15 steps in place of 3: a fifth of the error, its square 1/25.
        EXPECT_LT(error[1] / energy[1], error[0] / energy[0] / 18) << codec->describe();
        EXPECT_GT(error[1] / energy[1], error[0] / energy[0] / 35) << codec->describe();
    }
}

TEST_P(ZipCacheCodecTest, CodesTellWhichRowsAreSalient) {
    const std::vector<float> x = random_rows(3 * kGroup);
    const std::vector<uint8_t> salient = random_marks(3 * kGroup, 4);
    for (const Codec* codec : {static_cast<const Codec*>(&keys_), static_cast<const Codec*>(&values_)}) {
        const std::vector<float> y = decoded(*codec, x, salient);
        for (size_t row = 0; row < salient.size(); ++row) {
            ASSERT_EQ(codec->is_salient(&codes_[row * codec->code_bytes()]), salient[row] != 0);
        }
        for (int round = 0; round < 20; ++round) {
            const size_t first = rng_() % salient.size();
            const size_t n = 1 + rng_() % (salient.size() - first);
            std::vector<float> part(n * dim_);
            codec->decode(codes_.data(), first, n, part.data());
            ASSERT_TRUE(std::equal(part.begin(), part.end(), y.begin() + static_cast<std::ptrdiff_t>(first * dim_)));
        }
        const std::vector<float> plain = decoded(*codec, x, std::vector<uint8_t>(salient.size()));
        std::vector<std::byte> codes(codes_.size());
        codec->encode(x.data(), salient.size(), codes.data());
        EXPECT_EQ(codes, codes_) << "encode() marks no row";
        EXPECT_NE(plain, y);
    }
}

TEST_P(ZipCacheCodecTest, ConstantRowsAreNearlyExact) {
    for (const uint8_t mark : {uint8_t{0}, uint8_t{1}}) {
        for (const float value : {1.5F, -0.25F, 65504.0F}) {
            const std::vector<float> x(kGroup * dim_, value);
            const std::vector<uint8_t> salient(kGroup, mark);
            EXPECT_EQ(decoded(keys_, x, salient), x);
            for (const float y : decoded(values_, x, salient)) {
                ASSERT_NEAR(y, value, std::abs(value) / 1000);
            }
        }
    }
}

TEST_P(ZipCacheCodecTest, AnythingDecodesToFiniteValues) {
    const float odd[] = {INFINITY, -INFINITY, std::nanf(""), 3e38F, -1e5F, 1e-40F, 65504.0F};
    for (const unsigned share : {1U, 2U, 50U}) {
        std::vector<float> x = random_rows(2 * kGroup);
        std::ranges::transform(x, x.begin(), [&](float v) { return rng_() % share == 0 ? odd[rng_() % 7] : v; });
        const std::vector<uint8_t> salient = random_marks(2 * kGroup, 2);
        for (const Codec* codec : {static_cast<const Codec*>(&keys_), static_cast<const Codec*>(&values_)}) {
            for (const float y : decoded(*codec, x, salient)) {
                ASSERT_TRUE(std::isfinite(y));
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Dims, ZipCacheCodecTest, testing::Values(64, 80, 96, 128, 256));

TEST(ZipCacheCodec, CountsBitsInUse) {
    for (const size_t dim : {64, 80, 96, 128, 256}) {
        const ZipCacheKeyCodec keys(dim);
        const ZipCacheValueCodec values(dim);
        // 32 bits of a range a channel and group; 32 bits of a range a row, 16 of a normaliser a channel and group.
        EXPECT_EQ(keys.row_bits(true), 1 + 4 * dim + dim);
        EXPECT_EQ(keys.row_bits(false), 1 + 2 * dim + dim);
        EXPECT_EQ(values.row_bits(true), 1 + 4 * dim + 32 + dim / 2);
        EXPECT_EQ(values.row_bits(false), 1 + 2 * dim + 32 + dim / 2);
        EXPECT_EQ(8 * keys.code_bytes(), keys.row_bits(true) + 7);
        EXPECT_EQ(8 * values.code_bytes(), values.row_bits(true) + 7);
        EXPECT_EQ(keys.group_rows(), kGroup);
        EXPECT_EQ(values.group_rows(), kGroup);
    }
    EXPECT_EQ(ZipCacheKeyCodec(64).describe(), "ZipCache 4 or 2 bits, per channel, groups of 32");
    EXPECT_EQ(ZipCacheValueCodec(64).describe(), "ZipCache 4 or 2 bits, per token, channels normalised over 32");
}

TEST(ZipCacheCodec, RefusesWhatItCannotCode) {
    EXPECT_THROW(ZipCacheKeyCodec(0), Error);
    EXPECT_THROW(ZipCacheKeyCodec(68), Error);
    EXPECT_THROW(ZipCacheValueCodec(0), Error);
    EXPECT_THROW(ZipCacheValueCodec(72), Error);
}

}  // namespace
}  // namespace kvcodec
