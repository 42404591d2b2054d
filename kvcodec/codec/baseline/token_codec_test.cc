#include "kvcodec/codec/baseline/token_codec.h"

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

// Rounding error of a scale times 15 and a minimum below half precision's normal numbers.
constexpr float kSubnormal = 16 * 0x1p-25F;

struct Shape {
    size_t dim;
    unsigned bits;
};

class TokenCodecTest : public testing::TestWithParam<Shape> {
  protected:
    const size_t dim_ = GetParam().dim;
    const unsigned bits_ = GetParam().bits;
    const TokenCodec codec_{dim_, bits_};
    std::mt19937 rng_{3};
};

// With 4 bits this is ggml's q4_1: d and m in half precision, nibbles from d in single precision.
TEST_P(TokenCodecTest, IsTheArithmeticOfQ41) {
    const int largest = (1 << bits_) - 1;
    for (const float deviation : {1e-4F, 1.0F, 900.0F}) {
        for (const size_t n : {1, 2, 7, 65}) {
            std::normal_distribution<float> normal(deviation / 3, deviation);
            std::vector<float> x(n * dim_);
            for (float& v : x) {
                v = half_to_float(float_to_half(normal(rng_)));  // as a dense row holds it
            }
            std::vector<std::byte> codes(n * codec_.code_bytes());
            codec_.encode(x.data(), n, codes.data());
            std::vector<float> y(x.size());
            codec_.decode(codes.data(), 0, n, y.data());
            for (size_t first = 0; first < x.size();) {
                const size_t size = std::min<size_t>(32, dim_ - first % dim_);
                float low = x[first];
                float high = x[first];
                for (size_t i = first; i < first + size; ++i) {
                    low = std::min(low, x[i]);
                    high = std::max(high, x[i]);
                }
                const float d = (high - low) / static_cast<float>(largest);
                const float id = d != 0 ? 1 / d : 0;
                for (size_t i = first; i < first + size; ++i) {
                    const int q = std::min(largest, static_cast<int>((x[i] - low) * id + 0.5F));
                    const float expected =
                        half_to_float(float_to_half(d)) * static_cast<float>(q) + half_to_float(float_to_half(low));
                    ASSERT_FLOAT_EQ(y[i], expected) << "element " << i;
                    const float rounding =
                        std::ldexp(std::abs(low) + static_cast<float>(largest) * d, -11) + kSubnormal;
                    ASSERT_LE(std::abs(x[i] - y[i]), d / 2 + rounding) << "element " << i;
                }
                first += size;
            }
        }
    }
}

TEST_P(TokenCodecTest, LaysOutIndicesThenRanges) {
    std::normal_distribution<float> normal;
    std::vector<float> x(dim_);
    std::ranges::generate(x, [&] { return normal(rng_); });
    std::vector<std::byte> code(codec_.code_bytes());
    codec_.encode(x.data(), 1, code.data());
    std::vector<float> y(dim_);
    codec_.decode(code.data(), 0, 1, y.data());
    for (size_t i = 0; i < dim_; ++i) {
        const unsigned q = std::to_integer<unsigned>(code[i * bits_ / 8]) >> (i * bits_ % 8) & ((1U << bits_) - 1U);
        uint16_t range[2];
        std::memcpy(range, &code[dim_ * bits_ / 8 + i / 32 * sizeof range], sizeof range);
        ASSERT_FLOAT_EQ(y[i], half_to_float(range[0]) * static_cast<float>(q) + half_to_float(range[1]));
    }
}

TEST_P(TokenCodecTest, ConstantsAreExact) {
    for (const float value : {1.5F, -0.25F, 65504.0F}) {
        const std::vector<float> x(dim_, value);
        std::vector<std::byte> code(codec_.code_bytes());
        codec_.encode(x.data(), 1, code.data());
        std::vector<float> y(dim_);
        codec_.decode(code.data(), 0, 1, y.data());
        EXPECT_EQ(y, x);
    }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TokenCodecTest,
                         testing::Values(Shape{64, 2}, Shape{64, 4}, Shape{80, 2}, Shape{80, 4}, Shape{96, 2},
                                         Shape{96, 4}, Shape{128, 2}, Shape{128, 4}, Shape{256, 2}, Shape{256, 4}),
                         [](const auto& test) {
                             return "Dim" + std::to_string(test.param.dim) + "Bits" + std::to_string(test.param.bits);
                         });

TEST(TokenCodec, CountsBytes) {
    // Of f16: 18.75 % with 2 bits, 31.25 % with 4, where the head size is a multiple of 32.
    for (const size_t dim : {64, 96, 128, 256}) {
        EXPECT_EQ(TokenCodec(dim, 2).code_bytes() * 10'000, dim * 2 * 1'875);
        EXPECT_EQ(TokenCodec(dim, 4).code_bytes() * 10'000, dim * 2 * 3'125);
    }
    EXPECT_EQ(TokenCodec(80, 2).code_bytes(), 20U + 3 * 4);
    EXPECT_EQ(TokenCodec(80, 4).code_bytes(), 40U + 3 * 4);
    EXPECT_EQ(TokenCodec(64, 2).group_rows(), 1U);
    EXPECT_EQ(TokenCodec(64, 2).describe(), "token 2 bits, groups of 32");
}

TEST(TokenCodec, RefusesWhatItCannotCode) {
    EXPECT_THROW(TokenCodec(64, 3), Error);
    EXPECT_THROW(TokenCodec(64, 8), Error);
    EXPECT_THROW(TokenCodec(0, 2), Error);
    EXPECT_THROW(TokenCodec(66, 2), Error);
    EXPECT_NO_THROW(TokenCodec(66, 4));
}

}  // namespace
}  // namespace kvcodec
