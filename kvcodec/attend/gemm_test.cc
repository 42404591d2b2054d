#include "kvcodec/attend/gemm.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>
#include <vector>

#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kShapes = 12;

std::vector<float> random_vector(size_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

class GemmTest : public testing::TestWithParam<size_t> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    const size_t lanes_ = GetParam();
    std::mt19937 rng_{static_cast<unsigned>(lanes_)};
    std::uniform_int_distribution<size_t> rows_{1, 70};
    std::uniform_int_distribution<size_t> steps_{1, 140};
};

TEST_P(GemmTest, ScoresAgreeWithDouble) {
    for (size_t shape = 0; shape < kShapes; ++shape) {
        const size_t m = rows_(rng_);
        const size_t k = shape % 2 == 0 ? steps_(rng_) : (steps_(rng_) + 15) / 16 * 16;  // head sizes are such
        const std::vector<float> a = random_vector(m * k, rng_);
        const std::vector<float> b = random_vector(k * lanes_, rng_);
        std::vector<double> expected(m * lanes_);
        std::vector<double> size(m * lanes_);
        for (size_t i = 0; i < m; ++i) {
            for (size_t j = 0; j < k; ++j) {
                for (size_t lane = 0; lane < lanes_; ++lane) {
                    const double product = double{a[i * k + j]} * b[j * lanes_ + lane];
                    expected[i * lanes_ + lane] += product;
                    size[i * lanes_ + lane] += std::abs(product);
                }
            }
        }
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(hwy::TargetName(target));
            hwy::SetSupportedTargetsForTest(target);
            std::vector<float> c(m * lanes_ + 1, -7.0F);
            gemm_scores(a.data(), m, k, b.data(), lanes_, c.data());
            ASSERT_EQ(c.back(), -7.0F) << "wrote past the last row";
            for (size_t i = 0; i < expected.size(); ++i) {
                ASSERT_NEAR(c[i], expected[i], 1e-6 * size[i]) << "m " << m << " k " << k << " element " << i;
            }
        }
    }
}

TEST_P(GemmTest, ValuesAgreeWithDouble) {
    for (size_t shape = 0; shape < kShapes; ++shape) {
        const size_t m = rows_(rng_);
        const size_t k = steps_(rng_);
        const std::vector<float> v = random_vector(m * k, rng_);
        const std::vector<float> p = random_vector(m * lanes_, rng_);
        std::vector<float> before = random_vector(k * lanes_ + 1, rng_);
        std::vector<double> expected(before.begin(), before.end() - 1);
        std::vector<double> size(k * lanes_, 1.0);
        for (size_t i = 0; i < m; ++i) {
            for (size_t j = 0; j < k; ++j) {
                for (size_t lane = 0; lane < lanes_; ++lane) {
                    const double product = double{v[i * k + j]} * p[i * lanes_ + lane];
                    expected[j * lanes_ + lane] += product;
                    size[j * lanes_ + lane] += std::abs(product);
                }
            }
        }
        for (const int64_t target : test_targets()) {
            SCOPED_TRACE(hwy::TargetName(target));
            hwy::SetSupportedTargetsForTest(target);
            std::vector<float> o = before;
            gemm_values(v.data(), m, k, p.data(), lanes_, o.data());
            ASSERT_EQ(o.back(), before.back()) << "wrote past the last row";
            for (size_t i = 0; i < expected.size(); ++i) {
                ASSERT_NEAR(o[i], expected[i], 1e-6 * size[i]) << "m " << m << " k " << k << " element " << i;
            }
        }
    }
}

TEST_P(GemmTest, NoRows) {
    const std::vector<float> before = random_vector(5 * lanes_, rng_);
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        std::vector<float> o = before;
        gemm_values(nullptr, 0, 5, nullptr, lanes_, o.data());
        gemm_scores(nullptr, 0, 5, before.data(), lanes_, o.data());
        EXPECT_EQ(o, before) << hwy::TargetName(target);
    }
}

INSTANTIATE_TEST_SUITE_P(Lanes, GemmTest, testing::Range(size_t{4}, size_t{65}, size_t{4}));

}  // namespace
}  // namespace kvcodec
