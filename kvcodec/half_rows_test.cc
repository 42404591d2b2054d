#include "kvcodec/half_rows.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kvcodec/half.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

TEST(HalfRows, AgreeWithSingleValuesOnEveryTarget) {
    std::mt19937 rng(5);
    std::normal_distribution<float> exponent(0.0F, 8.0F);
    for (const size_t n : {0, 1, 3, 7, 8, 16, 31, 64, 129}) {
        std::vector<float> wide(n);
        for (size_t i = 0; i < n; ++i) {
            wide[i] = (rng() % 2 == 0 ? 1.0F : -1.0F) * std::exp2(exponent(rng));
        }
        if (n > 2) {
            wide[0] = std::numeric_limits<float>::infinity();
            wide[1] = -0.0F;
            wide[2] = 70000.0F;
        }
        for (const int64_t target : test_targets()) {
            hwy::SetSupportedTargetsForTest(target);
            std::vector<uint16_t> half(n + 1, 0x1234);
            narrow(wide.data(), n, half.data());
            EXPECT_EQ(half[n], 0x1234);
            half.resize(n);
            std::vector<float> back(n + 1, 7.0F);
            widen(half.data(), n, back.data());
            EXPECT_EQ(back[n], 7.0F);
            for (size_t i = 0; i < n; ++i) {
                ASSERT_EQ(half[i], float_to_half(wide[i])) << wide[i] << " on " << hwy::TargetName(target);
                ASSERT_EQ(back[i], half_to_float(half[i])) << hwy::TargetName(target);
            }
        }
        hwy::SetSupportedTargetsForTest(0);
    }
}

}  // namespace
}  // namespace kvcodec
