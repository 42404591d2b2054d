#include "tools/eval/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace kvcodec {
namespace {

TEST(StatisticsTest, MeanAndItsError) {
    const std::vector<float> values = {1, 2, 3, 4};
    const Estimate mean = mean_of(values);
    EXPECT_DOUBLE_EQ(mean.value, 2.5);
    EXPECT_NEAR(mean.error, std::sqrt(5.0 / 3 / 4), 1e-12);
    EXPECT_EQ(mean_of({}).value, 0);
    EXPECT_EQ(mean_of(std::vector<float>{7}).error, 0);
}

TEST(StatisticsTest, QuantilesInterpolate) {
    EXPECT_DOUBLE_EQ(quantile({3, 1, 2}, 0.5), 2);
    EXPECT_DOUBLE_EQ(quantile({0, 10}, 0.25), 2.5);
    EXPECT_DOUBLE_EQ(quantile({5}, 0.999), 5);
    EXPECT_DOUBLE_EQ(quantile({}, 0.5), 0);
}

TEST(StatisticsTest, DivergenceAgreesWithItsDefinition) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 4);
    for (const size_t n : {2, 17, 1000}) {
        std::vector<float> p(n);
        std::vector<float> q(n);
        for (size_t i = 0; i < n; ++i) {
            p[i] = normal(random) + 50;
            q[i] = normal(random) - 30;
        }
        double sum_p = 0;
        double sum_q = 0;
        for (size_t i = 0; i < n; ++i) {
            sum_p += std::exp(static_cast<double>(p[i]));
            sum_q += std::exp(static_cast<double>(q[i]));
        }
        double kld = 0;
        for (size_t i = 0; i < n; ++i) {
            const double log_p = p[i] - std::log(sum_p);
            kld += std::exp(log_p) * (log_p - (q[i] - std::log(sum_q)));
        }
        const TokenDivergence found = divergence(p.data(), q.data(), n, 1);
        EXPECT_NEAR(found.kld, kld, 1e-5 * (1 + kld));
        EXPECT_NEAR(found.nll_p, std::log(sum_p) - p[1], 1e-4);
        EXPECT_NEAR(found.nll_q, std::log(sum_q) - q[1], 1e-4);
        EXPECT_EQ(found.same_top, std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin());
        EXPECT_NEAR(divergence(p.data(), p.data(), n, 0).kld, 0, 1e-6);
    }
}

TEST(StatisticsTest, PerplexityRatioIsOfPairedDifferences) {
    DivergenceSeries series;
    for (const float nll : {1.0F, 5.0F, 2.0F}) {
        series.add({0.1F, true, nll, nll + 0.5F});
    }
    EXPECT_NEAR(perplexity_ratio(series).value, std::exp(0.5), 1e-6);
    EXPECT_NEAR(perplexity_ratio(series).error, 0, 1e-6);
    EXPECT_EQ(series.n_same_top, 3U);
}

TEST(StatisticsTest, WilsonInterval) {
    // 8 of 10: the textbook's interval.
    const Interval interval = wilson_interval(8, 10);
    EXPECT_NEAR(interval.low, 0.4902, 1e-4);
    EXPECT_NEAR(interval.high, 0.9433, 1e-4);
    EXPECT_EQ(wilson_interval(0, 5).low, 0);
    EXPECT_EQ(wilson_interval(0, 0).high, 1);
}

TEST(StatisticsTest, McNemarIsTheSignTest) {
    EXPECT_DOUBLE_EQ(mcnemar_p(0, 0), 1);
    EXPECT_NEAR(mcnemar_p(0, 5), 2.0 / 32, 1e-12);
    EXPECT_NEAR(mcnemar_p(5, 0), 2.0 / 32, 1e-12);
    EXPECT_NEAR(mcnemar_p(1, 9), 2 * 11.0 / 1024, 1e-12);
    EXPECT_DOUBLE_EQ(mcnemar_p(50, 50), 1);
    EXPECT_LT(mcnemar_p(400, 600), 1e-9);
}

TEST(StatisticsTest, LineThroughPoints) {
    const std::vector<double> x = {0, 1, 2, 3};
    const std::vector<double> y = {1, 3, 5, 7};
    const Line line = fit_line(x, y);
    EXPECT_NEAR(line.intercept, 1, 1e-12);
    EXPECT_NEAR(line.slope, 2, 1e-12);
}

}  // namespace
}  // namespace kvcodec
