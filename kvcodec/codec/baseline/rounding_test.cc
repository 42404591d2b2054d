#include "kvcodec/codec/baseline/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kvcodec/half.h"

namespace kvcodec {
namespace {

TEST(Rounding, PacksFromTheLowestBitOn) {
    std::mt19937 rng(1);
    for (unsigned bits = 1; bits <= 8; ++bits) {
        for (const size_t n : {1, 7, 8, 31, 80}) {
            std::vector<uint8_t> index(n);
            for (uint8_t& i : index) {
                i = static_cast<uint8_t>(rng() % (1U << bits));
            }
            std::vector<std::byte> packed(packed_bytes(n, bits) + 1, std::byte{0xA5});
            pack_indices(index.data(), n, bits, packed.data());
            ASSERT_EQ(packed.back(), std::byte{0xA5});
            for (size_t bit = 0; bit < (packed.size() - 1) * 8; ++bit) {
                const unsigned expected = bit < n * bits ? index[bit / bits] >> (bit % bits) & 1U : 0U;
                ASSERT_EQ(std::to_integer<unsigned>(packed[bit / 8] >> (bit % 8)) & 1U, expected) << bits << " bits";
            }
            std::vector<uint8_t> unpacked(n + 1, 0xA5);
            unpack_indices(packed.data(), n, bits, unpacked.data());
            ASSERT_EQ(unpacked.back(), 0xA5);
            unpacked.pop_back();
            ASSERT_EQ(unpacked, index) << bits << " bits";
        }
    }
}

TEST(Rounding, LevelsSpanTheRange) {
    // 3 elements, 2 apart: minimum -1, scale 2.
    const float x[] = {5.0F, 99.0F, -1.0F, -99.0F, 2.1F};
    uint8_t index[] = {9, 9, 9, 9, 9};
    const RangeCode range = round_to_nearest(x, 3, 2, 2, index);
    EXPECT_EQ(half_to_float(range.minimum), -1.0F);
    EXPECT_EQ(half_to_float(range.scale), 2.0F);
    const uint8_t expected[] = {3, 9, 0, 9, 2};
    EXPECT_TRUE(std::equal(std::begin(index), std::end(index), expected));
}

TEST(Rounding, NoRangeMeansTheMinimum) {
    for (const float width : {0.0F, 1e-8F, std::numeric_limits<float>::denorm_min()}) {
        const float x[] = {0.0F, width, 0.0F};
        uint8_t index[] = {9, 9, 9};
        const RangeCode range = round_to_nearest(x, 3, 1, 4, index);
        EXPECT_EQ(half_to_float(range.minimum), 0.0F);
        EXPECT_EQ(half_to_float(range.scale), 0.0F);
        EXPECT_EQ(index[1], 0);
    }
}

TEST(Rounding, WhatHalfPrecisionCannotHoldIsClamped) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float x[] = {kInfinity, -kInfinity, std::nanf(""), 1e30F};
    uint8_t index[4];
    const RangeCode range = round_to_nearest(x, 4, 1, 2, index);
    EXPECT_EQ(half_to_float(range.minimum), -65504.0F);
    EXPECT_NEAR(half_to_float(range.scale), 2 * 65504.0F / 3, 16.0F);
    EXPECT_EQ(index[0], 3);
    EXPECT_EQ(index[1], 0);
    EXPECT_EQ(index[2], 2);
    EXPECT_EQ(index[3], 3);
    EXPECT_EQ(to_finite_half_range(std::nanf("")), 0.0F);
    EXPECT_EQ(to_finite_half_range(-1e9F), -65504.0F);
    EXPECT_EQ(to_finite_half_range(3.25F), 3.25F);
}

}  // namespace
}  // namespace kvcodec
