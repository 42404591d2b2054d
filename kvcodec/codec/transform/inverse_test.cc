#include "kvcodec/codec/transform/inverse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvcodec {
namespace {

TEST(Inverse, GivesTheIdentityWithItsMatrix) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (const size_t dim : {1, 2, 7, 64, 128}) {
        std::vector<float> matrix(dim * dim);
        std::ranges::generate(matrix, [&] { return normal(random); });
        for (size_t i = 0; i < dim; ++i) {
            matrix[i * dim + i] += 2 * std::sqrt(static_cast<float>(dim));
        }
        const auto inverted = inverse(matrix, dim);
        ASSERT_TRUE(inverted.has_value()) << dim;
        for (size_t i = 0; i < dim; ++i) {
            for (size_t j = 0; j < dim; ++j) {
                double product = 0.0;
                for (size_t k = 0; k < dim; ++k) {
                    product += double{matrix[i * dim + k]} * (*inverted)[k * dim + j];
                }
                ASSERT_NEAR(product, i == j ? 1.0 : 0.0, 1e-9) << dim << ": " << i << ", " << j;
            }
        }
    }
}

TEST(Inverse, PivotsAreLookedFor) {
    const std::vector<float> swap = {0, 1, 0, 0, 0, 2, 4, 0, 0};
    const auto inverted = inverse(swap, 3);
    ASSERT_TRUE(inverted.has_value());
    EXPECT_EQ(*inverted, (std::vector<double>{0, 0, 0.25, 1, 0, 0, 0, 0.5, 0}));
}

TEST(Inverse, WhatHasNoneIsRefused) {
    EXPECT_FALSE(inverse(std::vector<float>{0}, 1).has_value());
    EXPECT_FALSE(inverse(std::vector<float>{1, 2, 2, 4}, 2).has_value());
    EXPECT_FALSE(inverse(std::vector<float>{1, 0, 0, 1e-6F}, 2).has_value());
    EXPECT_FALSE(inverse(std::vector<float>{1, 0, 0, std::numeric_limits<float>::quiet_NaN()}, 2).has_value());
    EXPECT_FALSE(inverse(std::vector<float>{1, 0, 0, std::numeric_limits<float>::infinity()}, 2).has_value());
    EXPECT_TRUE(inverse(std::vector<float>{1e-6F, 0, 0, 1e-6F}, 2).has_value()) << "the scale does not matter";
}

}  // namespace
}  // namespace kvcodec
