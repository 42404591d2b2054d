#include "kvcodec/attend/softmax.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kvcodec/half.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr float kHidden = -INFINITY;
constexpr uint16_t kHalfHidden = 0xFC00;

std::vector<float> random_vector(size_t n, std::mt19937& rng, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

class SoftmaxTest : public testing::TestWithParam<size_t> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    const size_t lanes_ = GetParam();
    std::mt19937 rng_{static_cast<unsigned>(lanes_)};
    std::uniform_int_distribution<size_t> rows_{1, 64};
};

TEST_P(SoftmaxTest, StepsAgreeWithDouble) {
    constexpr size_t kBlocks = 6;
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const float deviation : {0.01F, 1.0F, 40.0F}) {
            std::vector<float> max(lanes_ + 1, kHidden);
            std::vector<float> sum(lanes_ + 1, 0.0F);
            std::vector<float> correction(lanes_ + 1, -7.0F);
            std::vector<double> exact_max(lanes_, kHidden);
            std::vector<double> exact_sum(lanes_, 0.0);
            for (size_t block = 0; block < kBlocks; ++block) {
                const size_t m = block == 0 ? 1 : rows_(rng_);
                std::vector<float> s = random_vector(m * lanes_ + 1, rng_, deviation);
                // Lane 0 never sees anything, lane 1 not before block 2, lane 2 only at first, others by chance.
                for (size_t i = 0; i < m; ++i) {
                    for (size_t lane = 0; lane < lanes_; ++lane) {
                        if (lane == 0 || (lane == 1 && block < 2) || (lane == 2 && block > 1) || rng_() % 4 == 0) {
                            s[i * lanes_ + lane] = kHidden;
                        }
                    }
                }
                const std::vector<float> scores = s;
                const bool changed = softmax_step(s.data(), m, lanes_, max.data(), sum.data(), correction.data());
                ASSERT_EQ(s.back(), scores.back());
                bool any_change = false;
                for (size_t lane = 0; lane < lanes_; ++lane) {
                    const double old = exact_max[lane];
                    double& top = exact_max[lane];
                    for (size_t i = 0; i < m; ++i) {
                        top = std::max(top, double{scores[i * lanes_ + lane]});
                    }
                    const double factor = old == kHidden ? 0.0 : std::exp(old - top);
                    exact_sum[lane] *= factor;
                    for (size_t i = 0; i < m; ++i) {
                        const float score = scores[i * lanes_ + lane];
                        const double weight = score == kHidden ? 0.0 : std::exp(score - top);
                        exact_sum[lane] += weight;
                        ASSERT_NEAR(s[i * lanes_ + lane], weight, 1e-6) << "row " << i << " lane " << lane;
                        if (score == kHidden) {
                            ASSERT_EQ(s[i * lanes_ + lane], 0.0F);
                        }
                    }
                    ASSERT_EQ(double{max[lane]}, top) << "lane " << lane;
                    ASSERT_NEAR(sum[lane], exact_sum[lane], 2e-6 * exact_sum[lane]) << "lane " << lane;
                    ASSERT_NEAR(correction[lane], factor, 1e-6) << "lane " << lane;
                    any_change |= correction[lane] != 1.0F;
                }
                ASSERT_EQ(changed, any_change);
            }
            EXPECT_EQ(sum[0], 0.0F);
            EXPECT_GT(sum[1], 0.0F);
            EXPECT_EQ(max.back(), kHidden);
            EXPECT_EQ(sum.back(), 0.0F);
            EXPECT_EQ(correction.back(), -7.0F);
        }
    }
}

TEST_P(SoftmaxTest, SaysWhenNothingNeedsCorrection) {
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        std::vector<float> max(lanes_, 1.0F);
        std::vector<float> sum(lanes_, 2.0F);
        std::vector<float> correction(lanes_);
        std::vector<float> s(3 * lanes_, 1.0F);
        EXPECT_FALSE(softmax_step(s.data(), 3, lanes_, max.data(), sum.data(), correction.data()));
        EXPECT_EQ(correction, std::vector<float>(lanes_, 1.0F));
        EXPECT_EQ(sum, std::vector<float>(lanes_, 5.0F));
        for (size_t lane = 0; lane < lanes_; ++lane) {
            std::vector<float> higher(lanes_, 0.0F);
            higher[lane] = max[lane] + 1.0F;
            EXPECT_TRUE(softmax_step(higher.data(), 1, lanes_, max.data(), sum.data(), correction.data())) << lane;
        }
    }
}

TEST_P(SoftmaxTest, ScalesCapsAndMasks) {
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const float softcap : {0.0F, 0.7F, 50.0F}) {
            for (const bool masked : {false, true}) {
                const size_t m = rows_(rng_);
                const float scale = std::abs(random_vector(1, rng_)[0]);
                const std::vector<float> before = random_vector(m * lanes_ + 1, rng_, 20.0F);
                std::vector<float> bias = random_vector(m * lanes_, rng_);
                for (float& b : bias) {
                    b = rng_() % 3 == 0 ? kHidden : b;
                }
                std::vector<float> s = before;
                scale_and_mask(s.data(), m, lanes_, scale, softcap, masked ? bias.data() : nullptr);
                ASSERT_EQ(s.back(), before.back());
                for (size_t i = 0; i < bias.size(); ++i) {
                    double expected = double{before[i]} * scale;
                    if (softcap != 0) {
                        expected = softcap * std::tanh(expected / softcap);
                    }
                    if (masked && bias[i] == kHidden) {
                        ASSERT_EQ(s[i], kHidden);
                    } else {
                        expected += masked ? bias[i] : 0.0F;
                        ASSERT_NEAR(s[i], expected, 1e-6 * (10.0 + std::abs(expected))) << i;
                    }
                }
            }
        }
    }
}

TEST_P(SoftmaxTest, ScalesLanes) {
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const size_t rows : {0, 1, 7, 80}) {
            const std::vector<float> before = random_vector(rows * lanes_ + 1, rng_);
            const std::vector<float> factor = random_vector(lanes_, rng_);
            std::vector<float> x = before;
            scale_lanes(x.data(), rows, lanes_, factor.data());
            for (size_t i = 0; i < rows * lanes_; ++i) {
                ASSERT_EQ(x[i], before[i] * factor[i % lanes_]) << i;
            }
            ASSERT_EQ(x.back(), before.back());
        }
    }
}

TEST_P(SoftmaxTest, WeightsAreRelativelyExact) {
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        constexpr size_t kRows = 50;
        std::uniform_real_distribution<float> score(-86.0F, 0.0F);
        std::vector<float> s(kRows * lanes_), max(lanes_, 0.0F), sum(lanes_, 0.0F), correction(lanes_);
        std::ranges::generate(s, [&] { return score(rng_); });
        const std::vector<float> scores = s;
        softmax_step(s.data(), kRows, lanes_, max.data(), sum.data(), correction.data());
        for (size_t i = 0; i < s.size(); ++i) {
            ASSERT_NEAR(s[i] / std::exp(double{scores[i]}), 1.0, 3e-7) << scores[i];
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Lanes, SoftmaxTest, testing::Range(size_t{4}, size_t{65}, size_t{4}));

class MaskTest : public testing::Test {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_F(MaskTest, TellsHiddenOpenAndMixedApart) {
    std::mt19937 rng(7);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (size_t n = 1; n <= 70; ++n) {
            std::vector<uint16_t> mask(n, kHalfHidden);
            ASSERT_EQ(classify_mask(mask.data(), n), MaskKind::kHidden) << n;
            ASSERT_EQ(count_visible(mask.data(), n), 0U);
            std::fill(mask.begin(), mask.end(), uint16_t{0});
            ASSERT_EQ(classify_mask(mask.data(), n), MaskKind::kOpen) << n;
            ASSERT_EQ(count_visible(mask.data(), n), n);
            // One odd value at any place makes it mixed.
            const size_t odd = rng() % n;
            mask[odd] = float_to_half(-0.5F);
            ASSERT_EQ(classify_mask(mask.data(), n), MaskKind::kMixed) << odd << " of " << n;
            std::fill(mask.begin(), mask.end(), kHalfHidden);
            mask[odd] = 0;
            if (n > 1) {
                ASSERT_EQ(classify_mask(mask.data(), n), MaskKind::kMixed) << odd << " of " << n;
            }
            ASSERT_EQ(count_visible(mask.data(), n), 1U);
        }
    }
}

TEST_F(MaskTest, TellsWhetherAllAreOpen) {
    std::mt19937 rng(9);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (size_t n = 1; n <= 70; ++n) {
            const size_t n_rows = 1 + rng() % 5, stride = n + rng() % 3;
            std::vector<uint16_t> masks(n_rows * stride, kHalfHidden);
            for (size_t row = 0; row < n_rows; ++row) {
                std::fill_n(masks.begin() + static_cast<std::ptrdiff_t>(row * stride), n, uint16_t{0});
            }
            ASSERT_TRUE(all_open(masks.data(), stride, n_rows, n)) << n_rows << " of " << n;
            masks[rng() % n_rows * stride + rng() % n] = kHalfHidden;
            ASSERT_FALSE(all_open(masks.data(), stride, n_rows, n)) << n_rows << " of " << n;
        }
    }
}

TEST_F(MaskTest, CountsVisible) {
    std::mt19937 rng(8);
    std::normal_distribution<float> normal(0.0F, 30.0F);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (size_t n = 2; n <= 70; ++n) {
            std::vector<uint16_t> mask(n);
            for (uint16_t& value : mask) {
                value = rng() % 3 == 0 ? kHalfHidden : float_to_half(normal(rng));
            }
            const auto visible = std::count_if(mask.begin(), mask.end(), [](uint16_t v) { return v != kHalfHidden; });
            ASSERT_EQ(count_visible(mask.data(), n), static_cast<size_t>(visible));
            std::vector<uint8_t> chosen(n);
            size_t both = 0;
            for (size_t i = 0; i < n; ++i) {
                chosen[i] = static_cast<uint8_t>(rng() % 2 == 0 ? 0 : 1 + rng() % 255);
                both += chosen[i] != 0 && mask[i] != kHalfHidden ? 1 : 0;
            }
            ASSERT_EQ(count_visible(mask.data(), chosen.data(), n), both);
        }
    }
}

}  // namespace
}  // namespace kvcodec
