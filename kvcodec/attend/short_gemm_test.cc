#include "kvcodec/attend/short_gemm.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <random>
#include <vector>

#include "kvcodec/attend/tile.h"
#include "kvcodec/target.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kShapes = 12;
constexpr size_t kMostRows = 70, kMostSteps = 140;

std::vector<float> random_vector(size_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    std::ranges::generate(x, [&] { return normal(rng); });
    return x;
}

/// Memory for a ShortGemm: exactly what it asks for, aligned; the sanitizer catches any more.
class Memory {
  public:
    explicit Memory(size_t n) : data_(new (std::align_val_t(64)) float[n]) {}
    ~Memory() { operator delete[](data_, std::align_val_t(64)); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    Arena& arena() { return arena_; }

  private:
    float* data_;
    Arena arena_{data_};
};

/// Lanes.
class ShortGemmTest : public testing::TestWithParam<size_t> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    const size_t lanes_ = GetParam();
    std::mt19937 rng_{static_cast<unsigned>(lanes_)};
    std::uniform_int_distribution<size_t> rows_{1, kMostRows};
    std::uniform_int_distribution<size_t> steps_{1, kMostSteps};
};

TEST_P(ShortGemmTest, ScoresAgreeWithDouble) {
    for (size_t shape = 0; shape < kShapes; ++shape) {
        const size_t m = rows_(rng_);
        const size_t k = shape % 2 == 0 ? steps_(rng_) : (steps_(rng_) + 15) / 16 * 16;  // head sizes are such
        std::vector<float> a = random_vector(m * k, rng_), b = random_vector(k * lanes_, rng_);
        for (size_t i = 0; i < m; ++i) {  // rows of any size, and one of zeros
            const float size = i == 1 ? 0.0F : std::exp2(static_cast<float>(rng_() % 40) - 20.0F);
            std::transform(&a[i * k], &a[i * k] + k, &a[i * k], [size](float v) { return v * size; });
        }
        std::vector<double> expected(m * lanes_), norm_a(m), norm_b(lanes_);
        for (size_t j = 0; j < k; ++j) {
            for (size_t i = 0; i < m; ++i) {
                norm_a[i] += double{a[i * k + j]} * a[i * k + j];
                for (size_t lane = 0; lane < lanes_; ++lane) {
                    expected[i * lanes_ + lane] += double{a[i * k + j]} * b[j * lanes_ + lane];
                }
            }
            for (size_t lane = 0; lane < lanes_; ++lane) {
                norm_b[lane] += double{b[j * lanes_ + lane]} * b[j * lanes_ + lane];
            }
        }
        for (const int64_t target : test_targets()) {
            hwy::SetSupportedTargetsForTest(target);
            SCOPED_TRACE(target_name());
            Memory memory(ShortGemm::floats(m, k, lanes_));
            ShortGemm gemm(memory.arena(), m, k, lanes_, ShortGemm::pays());
            std::vector<float> c(m * lanes_ + 1, -7.0F);
            gemm.set_queries(b.data(), k, lanes_);
            gemm.scores(a.data(), m, k, lanes_, c.data());
            ASSERT_EQ(c.back(), -7.0F) << "wrote past the last row";
            for (size_t i = 0; i < expected.size(); ++i) {
                const double size = std::sqrt(norm_a[i / lanes_] * norm_b[i % lanes_]);
                ASSERT_NEAR(c[i], expected[i], 1e-4 * size) << "m " << m << " k " << k << " element " << i;
            }
        }
    }
}

TEST_P(ShortGemmTest, ValuesAgreeWithDouble) {
    std::uniform_real_distribution<float> logarithm(-18.0F, 0.0F);
    for (size_t shape = 0; shape < kShapes; ++shape) {
        const size_t m = rows_(rng_);
        const size_t k = shape % 2 == 0 ? steps_(rng_) : (steps_(rng_) + 15) / 16 * 16;
        std::vector<float> v = random_vector(m * k, rng_), p(m * lanes_);
        for (size_t i = 0; i < m * k; ++i) {  // dimensions of any size, and one of zeros
            v[i] *= i % k == 1 ? 0.0F : std::exp2(static_cast<float>(i % k % 17) - 8.0F);
        }
        std::ranges::generate(p, [&] { return std::exp(logarithm(rng_)); });
        for (size_t i = 0; i < m; ++i) {  // a lane that sees nothing
            p[i * lanes_ + lanes_ / 2] = 0.0F;
        }
        const std::vector<float> before = random_vector(k * lanes_ + 1, rng_);
        std::vector<double> expected(before.begin(), before.end() - 1), norm_v(k), norm_p(lanes_);
        for (size_t i = 0; i < m; ++i) {
            for (size_t j = 0; j < k; ++j) {
                norm_v[j] += double{v[i * k + j]} * v[i * k + j];
                for (size_t lane = 0; lane < lanes_; ++lane) {
                    expected[j * lanes_ + lane] += double{v[i * k + j]} * p[i * lanes_ + lane];
                }
            }
            for (size_t lane = 0; lane < lanes_; ++lane) {
                norm_p[lane] += double{p[i * lanes_ + lane]} * p[i * lanes_ + lane];
            }
        }
        for (const int64_t target : test_targets()) {
            hwy::SetSupportedTargetsForTest(target);
            SCOPED_TRACE(target_name());
            Memory memory(ShortGemm::floats(m, k, lanes_));
            ShortGemm gemm(memory.arena(), m, k, lanes_, ShortGemm::pays());
            std::vector<float> o = before;
            gemm.values(v.data(), m, k, p.data(), lanes_, o.data());
            ASSERT_EQ(o.back(), before.back()) << "wrote past the last row";
            for (size_t i = 0; i < expected.size(); ++i) {
                const double size = std::sqrt(norm_v[i / lanes_] * norm_p[i % lanes_]);
                const double bound = 1e-4 * size + 1e-6 * std::abs(expected[i]);
                ASSERT_NEAR(o[i], expected[i], bound) << "m " << m << " k " << k << " element " << i;
            }
        }
    }
}

TEST_P(ShortGemmTest, ServesFewerRowsAndLanesThanItHasMemoryFor) {
    constexpr size_t kDimK = 96, kDimV = 64, kRows = 9;
    const std::vector<float> q = random_vector(kDimK * lanes_, rng_), keys = random_vector(kRows * kDimK, rng_);
    const std::vector<float> values = random_vector(kRows * kDimV, rng_);
    std::vector<float> p(kRows * lanes_, 0.25F);
    const auto run = [&](size_t rows, size_t dim, size_t lanes) {
        Memory memory(ShortGemm::floats(rows, dim, lanes));
        ShortGemm gemm(memory.arena(), rows, dim, lanes, ShortGemm::pays());
        std::vector<float> result(kRows * lanes_), o(kDimV * lanes_);
        gemm.set_queries(q.data(), kDimK, lanes_);
        for (int round = 0; round < 2; ++round) {
            gemm.scores(keys.data(), kRows, kDimK, lanes_, result.data());
            gemm.values(values.data(), kRows, kDimV, p.data(), lanes_, o.data());
        }
        result.insert(result.end(), o.begin(), o.end());
        return result;
    };
    EXPECT_EQ(run(kRows, kDimK, lanes_), run(64, 128, lanes_ + 48));
}

TEST_P(ShortGemmTest, DoesNotHideNan) {
    std::vector<float> x(4 * 32, 1.0F), q(32 * lanes_, 1.0F), p(4 * lanes_, 0.25F), c(4 * lanes_), o(32 * lanes_);
    x[32] = NAN;  // of the second row, in its first dimension
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        SCOPED_TRACE(target_name());
        Memory memory(ShortGemm::floats(4, 32, lanes_));
        ShortGemm gemm(memory.arena(), 4, 32, lanes_, ShortGemm::pays());
        gemm.set_queries(q.data(), 32, lanes_);
        gemm.scores(x.data(), 4, 32, lanes_, c.data());
        gemm.values(x.data(), 4, 32, p.data(), lanes_, o.data());
        for (size_t lane = 0; lane < lanes_; ++lane) {
            ASSERT_FALSE(std::isnan(c[lane]));
            ASSERT_TRUE(std::isnan(c[lanes_ + lane]));
            ASSERT_TRUE(std::isnan(o[lane]));
            ASSERT_FALSE(std::isnan(o[lanes_ + lane]));
        }
    }
}

TEST_P(ShortGemmTest, SumsStayInRange) {
    constexpr size_t kRows = 61, kDim = 128;
    const std::vector<float> ones(kDim * std::max(kRows, lanes_), 1.0F), p(kRows * lanes_, 1.0F);
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        SCOPED_TRACE(target_name());
        Memory memory(ShortGemm::floats(kRows, kDim, lanes_));
        ShortGemm gemm(memory.arena(), kRows, kDim, lanes_, ShortGemm::pays());
        std::vector<float> c(kRows * lanes_), o(kDim * lanes_);
        gemm.set_queries(ones.data(), kDim, lanes_);
        gemm.scores(ones.data(), kRows, kDim, lanes_, c.data());
        gemm.values(ones.data(), kRows, kDim, p.data(), lanes_, o.data());
        for (const float score : c) {
            ASSERT_NEAR(score, 128.0F, 0.02F);
        }
        for (const float sum : o) {
            ASSERT_NEAR(sum, 61.0F, 0.01F);  // equal values have 4195 levels
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Lanes, ShortGemmTest, testing::Values(16, 32, 48, 112));

}  // namespace
}  // namespace kvcodec
