#include "kvcodec/learn/low_rank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace kvcodec {
namespace {

std::vector<float> random_matrix(size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> matrix(n);
    std::ranges::generate(matrix, [&] { return normal(random); });
    return matrix;
}

double energy_of(const std::vector<float>& x) {
    return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
}

double squared_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        sum += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    }
    return sum;
}

TEST(LeftSingular, OfADiagonalMatrix) {
    const std::vector<float> matrix = {0, 3, 0, 0, -4, 0, 0, 0, 0, 0, 0, 1};
    const LeftSingular found = left_singular(matrix, 3, 4);
    ASSERT_EQ(found.rows(), 3U);
    EXPECT_NEAR(found.values[0], 4.0, 1e-6);
    EXPECT_NEAR(found.values[1], 3.0, 1e-6);
    EXPECT_NEAR(found.values[2], 1.0, 1e-6);
    EXPECT_NEAR(std::abs(found.vectors[1]), 1.0F, 1e-6F);
    EXPECT_NEAR(std::abs(found.vectors[3]), 1.0F, 1e-6F);
    EXPECT_NEAR(std::abs(found.vectors[8]), 1.0F, 1e-6F);
    EXPECT_NEAR(found.condition(), 4.0, 1e-6);
    EXPECT_NEAR(found.lost(0), 1.0, 1e-6);
    EXPECT_NEAR(found.lost(1), 10.0 / 26, 1e-6);
    EXPECT_EQ(found.lost(3), 0.0);
}

// Eckart and Young: what is left out is just the rest of the squared singular values.
TEST(LeftSingular, ProjectionLosesTheRestOfTheValues) {
    for (const auto& [rows, columns] : {std::pair<size_t, size_t>{1, 5}, {8, 8}, {24, 100}, {40, 17}, {192, 576}}) {
        const std::vector<float> matrix = random_matrix(rows * columns, static_cast<unsigned>(rows));
        const LeftSingular basis = left_singular(matrix, rows, columns);
        for (const size_t rank : {size_t{0}, rows / 2, rows - 1, rows}) {
            std::vector<float> projected(matrix.size());
            project(basis, rank, matrix, columns, projected);
            EXPECT_NEAR(squared_difference(matrix, projected) / energy_of(matrix), basis.lost(rank), 1e-5)
                << rows << " x " << columns << ", rank " << rank;
            std::vector<float> in_place = matrix;
            project(basis, rank, in_place, columns, in_place);
            EXPECT_EQ(in_place, projected);
        }
    }
}

// Where inputs are not alike in all directions, the basis of what is made of them loses less of it.
TEST(LeftSingular, OfMomentsLosesLeastOfWhatWasSeen) {
    constexpr size_t kRows = 16, kColumns = 32, kInputs = 500, kRank = 8;
    const std::vector<float> weights = random_matrix(kRows * kColumns, 1);
    std::vector<float> inputs = random_matrix(kColumns * kInputs, 2);  // [columns, inputs]
    for (size_t j = 0; j < kColumns; ++j) {
        for (size_t i = 0; i < kInputs; ++i) {
            inputs[j * kInputs + i] *= std::pow(0.8F, static_cast<float>(j));
        }
    }
    std::vector<float> seen(kRows * kInputs);
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t j = 0; j < kColumns; ++j) {
            for (size_t i = 0; i < kInputs; ++i) {
                seen[r * kInputs + i] += weights[r * kColumns + j] * inputs[j * kInputs + i];
            }
        }
    }
    std::vector<double> moments(kRows * kRows);
    for (size_t a = 0; a < kRows; ++a) {
        for (size_t b = 0; b < kRows; ++b) {
            moments[a * kRows + b] =
                std::inner_product(&seen[a * kInputs], &seen[a * kInputs] + kInputs, &seen[b * kInputs], 0.0);
        }
    }
    const auto lost = [&](const LeftSingular& basis) {
        std::vector<float> projected(seen.size());
        project(basis, kRank, seen, kInputs, projected);
        return squared_difference(seen, projected) / energy_of(seen);
    };
    const LeftSingular whitened = left_singular(moments, kRows);
    EXPECT_NEAR(lost(whitened), whitened.lost(kRank), 1e-5);
    EXPECT_LT(lost(whitened), 0.5 * lost(left_singular(weights, kRows, kColumns)));
}

TEST(LeftSingular, SingularAndZeroMatricesHaveAFiniteCondition) {
    const LeftSingular singular = left_singular(std::vector<float>{1, 2, 2, 4}, 2, 2);
    EXPECT_NEAR(singular.condition(), 1e7, 1.0);
    const LeftSingular tall = left_singular(std::vector<float>{4, 0, 0, 2, 0, 0}, 3, 2);
    EXPECT_EQ(tall.most_rank, 2U);
    EXPECT_NEAR(tall.condition(), 2.0, 1e-6);
    EXPECT_EQ(left_singular(std::vector<float>(12), 3, 4).condition(), 1.0);
    EXPECT_EQ(left_singular(std::vector<float>(12), 3, 4).lost(1), 0.0);
}

TEST(ProgressiveShares, FallInAStraightLineForEqualConditions) {
    const std::vector<double> log_condition(5, 2.0);
    const std::vector<double> shares = progressive_shares(log_condition, 0.6, 0.5);
    for (size_t l = 0; l < 5; ++l) {
        // mean of 1 - 0.5 * l / 4 is 0.75
        EXPECT_NEAR(shares[l], 0.6 / 0.75 * (1.0 - 0.125 * static_cast<double>(l)), 1e-12);
    }
}

TEST(ProgressiveShares, KeepTheirMeanAndNeverRise) {
    std::mt19937 random(3);
    std::uniform_real_distribution<double> uniform(0.0, 10.0);
    for (const size_t n : {1, 2, 3, 28, 80}) {
        for (const double keep : {0.1, 0.5, 0.6, 0.9, 1.0}) {
            for (const double steepness : {0.0, 0.3, 0.5, 1.0}) {
                std::vector<double> log_condition(n);
                std::ranges::generate(log_condition, [&] { return uniform(random); });
                const std::vector<double> shares = progressive_shares(log_condition, keep, steepness);
                ASSERT_EQ(shares.size(), n);
                EXPECT_NEAR(std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(n), keep, 1e-9);
                EXPECT_TRUE(std::ranges::is_sorted(shares, [](double a, double b) { return a > b + 1e-12; }));
                EXPECT_LE(shares.front(), 1.0 + 1e-12);
                EXPECT_GE(shares.back(), -1e-12);
                if (steepness == 0.0) {
                    EXPECT_NEAR(shares.back(), keep, 1e-12);
                }
            }
        }
    }
    EXPECT_EQ(progressive_shares(std::vector<double>(4), 0.5, 0.5), std::vector<double>(4, 0.5)) << "all conditions 1";
    EXPECT_TRUE(progressive_shares({}, 0.5, 0.5).empty());
}

TEST(RanksOf, AreMultiplesWithTheSameSum) {
    for (const size_t n : {1, 5, 30}) {
        for (const double keep : {0.1, 0.55, 0.6, 0.8, 1.0}) {
            const std::vector<double> shares = progressive_shares(std::vector<double>(n, 1.0), keep, 0.5);
            const std::vector<size_t> ranks = ranks_of(shares, std::vector<size_t>(n, 192), 8);
            double exact = 0.0;
            size_t sum = 0;
            for (size_t l = 0; l < n; ++l) {
                EXPECT_EQ(ranks[l] % 8, 0U);
                EXPECT_GE(ranks[l], 8U);
                EXPECT_LE(ranks[l], 192U);
                exact += shares[l] * 192;
                sum += ranks[l];
            }
            EXPECT_NEAR(static_cast<double>(sum), exact, 4.0 + 1e-9);
            EXPECT_TRUE(std::ranges::is_sorted(ranks, std::greater<>()));
        }
    }
    EXPECT_EQ(ranks_of(std::vector<double>{0.0, 1.0}, std::vector<size_t>{64, 64}, 8), (std::vector<size_t>{8, 64}));
    EXPECT_EQ(ranks_of(std::vector<double>{0.5, 0.5}, std::vector<size_t>{64, 32}, 8), (std::vector<size_t>{32, 16}));
    EXPECT_EQ(ranks_of(std::vector<double>{0.2, 0.3, 0.31}, std::vector<size_t>{80, 80, 80}, 8),
              (std::vector<size_t>{16, 24, 24}));
}

}  // namespace
}  // namespace kvcodec
