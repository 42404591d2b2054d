#include "kvcodec/learn/principal_components.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace kvcodec {
namespace {

float dot(const float* a, const float* b, size_t n) {
    return std::inner_product(a, a + n, b, 0.0F);
}

/// [dim, dim] orthonormal rows by Gram-Schmidt.
std::vector<float> random_basis(size_t dim, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> basis(dim * dim);
    for (size_t j = 0; j < dim; ++j) {
        float* row = basis.data() + j * dim;
        std::generate_n(row, dim, [&] { return normal(random); });
        for (size_t pass = 0; pass < 2; ++pass) {
            for (size_t k = 0; k < j; ++k) {
                const float* other = basis.data() + k * dim;
                const float along = dot(row, other, dim);
                std::transform(row, row + dim, other, row, [&](float a, float b) { return a - along * b; });
            }
        }
        const float norm = std::sqrt(dot(row, row, dim));
        std::transform(row, row + dim, row, [&](float value) { return value / norm; });
    }
    return basis;
}

/// Two rows for each direction, +- sqrt(variance n / 2) along it: their second moments are exactly the planted ones.
std::vector<float> planted_rows(const std::vector<float>& basis, const std::vector<float>& variance) {
    const size_t dim = variance.size();
    std::vector<float> rows;
    for (size_t j = 0; j < dim; ++j) {
        for (const float sign : {1.0F, -1.0F}) {
            const float length = sign * std::sqrt(variance[j] * static_cast<float>(dim));
            for (size_t i = 0; i < dim; ++i) {
                rows.push_back(length * basis[j * dim + i]);
            }
        }
    }
    return rows;
}

void expect_sound(const PrincipalComponents& components, size_t dim) {
    ASSERT_EQ(components.basis.size(), dim * dim);
    ASSERT_EQ(components.variance.size(), dim);
    for (size_t i = 0; i < dim; ++i) {
        const float* row = components.basis.data() + i * dim;
        for (size_t j = 0; j <= i; ++j) {
            ASSERT_NEAR(dot(row, components.basis.data() + j * dim, dim), i == j ? 1.0F : 0.0F, 1e-5F);
        }
        const auto [least, greatest] = std::minmax_element(row, row + dim);
        ASSERT_GE(*greatest, -*least) << "sign of direction " << i;
        ASSERT_GE(components.variance[i], 0.0F);
    }
    ASSERT_TRUE(std::ranges::is_sorted(components.variance, std::greater<>()));
}

TEST(PrincipalComponents, RecoversAPlantedCovariance) {
    for (const size_t dim : {1, 2, 3, 5, 16, 64, 128}) {
        const std::vector<float> basis = random_basis(dim, static_cast<unsigned>(dim));
        std::vector<float> variance;
        for (size_t j = 0; j < dim; ++j) {
            variance.push_back(100.0F * std::pow(0.9F, static_cast<float>(j)));
        }
        const PrincipalComponents found = find_principal_components(planted_rows(basis, variance), dim);
        expect_sound(found, dim);
        for (size_t j = 0; j < dim; ++j) {
            EXPECT_NEAR(found.variance[j], variance[j], 1e-4F * variance[j] + 1e-4F) << j << " of " << dim;
            const float cosine = dot(found.basis.data() + j * dim, basis.data() + j * dim, dim);
            EXPECT_GT(std::abs(cosine), 0.999F) << j << " of " << dim;
        }
    }
}

TEST(PrincipalComponents, ReproducesSecondMoments) {
    constexpr size_t kDim = 24, kRows = 500;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> rows(kRows * kDim);
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i] = normal(random) * static_cast<float>(i % kDim + 1) + (i % kDim > 0 ? 0.5F * rows[i - 1] : 0.0F);
    }
    const PrincipalComponents found = find_principal_components(rows, kDim);
    expect_sound(found, kDim);
    for (size_t i = 0; i < kDim; ++i) {
        for (size_t j = 0; j < kDim; ++j) {
            double expected = 0.0, actual = 0.0;
            for (size_t row = 0; row < kRows; ++row) {
                expected += double{rows[row * kDim + i]} * double{rows[row * kDim + j]} / kRows;
            }
            for (size_t k = 0; k < kDim; ++k) {
                actual +=
                    double{found.variance[k]} * double{found.basis[k * kDim + i]} * double{found.basis[k * kDim + j]};
            }
            EXPECT_NEAR(actual, expected, 1e-5 * found.variance[0]);
        }
    }
}

TEST(PrincipalComponents, EqualVariancesAndWideRanges) {
    constexpr size_t kDim = 32;
    const std::vector<float> basis = random_basis(kDim, 3);
    const PrincipalComponents equal = find_principal_components(planted_rows(basis, std::vector(kDim, 2.0F)), kDim);
    expect_sound(equal, kDim);
    EXPECT_NEAR(equal.variance.front(), 2.0F, 1e-4F);
    EXPECT_NEAR(equal.variance.back(), 2.0F, 1e-4F);
    for (const float scale : {1e-30F, 1e-15F, 1e15F, 1e30F}) {
        std::vector<float> variance(kDim, scale);
        variance[0] = scale * 4096;
        const PrincipalComponents found = find_principal_components(planted_rows(basis, variance), kDim);
        expect_sound(found, kDim);
        EXPECT_NEAR(found.variance[0] / scale, 4096.0F, 1.0F);
    }
}

TEST(PrincipalComponents, FewerRowsThanDimensions) {
    constexpr size_t kDim = 64;
    const std::vector<float> basis = random_basis(kDim, 4);
    const PrincipalComponents found = find_principal_components(std::span(basis).first(3 * kDim), kDim);
    expect_sound(found, kDim);
    for (size_t j = 0; j < kDim; ++j) {
        EXPECT_NEAR(found.variance[j], j < 3 ? 1.0F / 3 : 0.0F, 1e-6F);
    }
    expect_sound(find_principal_components(std::span(basis).first(kDim), kDim), kDim);
}

TEST(PrincipalComponents, ZeroRowsAndNoRows) {
    constexpr size_t kDim = 16;
    for (const size_t n : {0, 1, 100}) {
        const PrincipalComponents found = find_principal_components(std::vector<float>(n * kDim), kDim);
        expect_sound(found, kDim);
        EXPECT_EQ(found.variance, std::vector<float>(kDim));
    }
}

TEST(PrincipalComponents, DeadAndRepeatedDimensions) {
    constexpr size_t kDim = 12;
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    std::vector<float> rows(200 * kDim);
    for (size_t i = 0; i < rows.size(); i += kDim) {
        rows[i + 3] = normal(random);
        rows[i + 7] = rows[i + 3];  // one direction of both
    }
    const PrincipalComponents found = find_principal_components(rows, kDim);
    expect_sound(found, kDim);
    EXPECT_NEAR(found.basis[3], std::sqrt(0.5F), 1e-6F);
    EXPECT_NEAR(found.basis[7], std::sqrt(0.5F), 1e-6F);
    EXPECT_GT(found.variance[0], 1.0F);
    EXPECT_LT(found.variance[1], 1e-6F);
}

TEST(PrincipalComponents, EqualElements) {
    constexpr size_t kDim = 128;
    for (const float value : {0.1F, -3.0F, 1e-15F}) {
        const PrincipalComponents found = find_principal_components(std::vector<float>(10 * kDim, value), kDim);
        expect_sound(found, kDim);
        EXPECT_NEAR(found.variance[0] / (value * value * kDim), 1.0F, 1e-5F);
        EXPECT_LT(found.variance[1], 1e-10F * found.variance[0]);
    }
}

TEST(PrincipalComponents, LeavesOutNonFiniteRows) {
    constexpr size_t kDim = 8;
    const std::vector<float> basis = random_basis(kDim, 7);
    std::vector<float> rows = basis;
    rows.insert(rows.end(), basis.begin(), basis.end());
    rows[kDim * kDim] = std::numeric_limits<float>::quiet_NaN();
    rows[2 * kDim * kDim - 1] = -std::numeric_limits<float>::infinity();
    std::vector<float> finite(rows.begin(), rows.begin() + kDim * kDim);
    finite.insert(finite.end(), basis.begin() + kDim, basis.end() - kDim);
    const PrincipalComponents found = find_principal_components(rows, kDim);
    expect_sound(found, kDim);
    EXPECT_EQ(found.basis, find_principal_components(finite, kDim).basis);
    EXPECT_EQ(found.variance, find_principal_components(finite, kDim).variance);
}

TEST(PrincipalComponents, TheLargestDimension) {
    constexpr size_t kDim = 1024;
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    std::vector<float> rows(40 * kDim);
    std::ranges::generate(rows, [&] { return normal(random); });
    expect_sound(find_principal_components(rows, kDim), kDim);
}

/// [dim, dim] of the readers' energies along the directions of a basis.
std::vector<double> planted_moments(const std::vector<float>& basis, const std::vector<float>& energy) {
    return second_moments(planted_rows(basis, energy), energy.size());
}

TEST(WeightedComponents, ReadersOfZeroCountAllDirectionsAlike) {
    constexpr size_t kDim = 24;
    std::vector<float> variance(kDim);
    for (size_t j = 0; j < kDim; ++j) {
        variance[j] = std::pow(0.8F, static_cast<float>(j));
    }
    const std::vector<float> rows = planted_rows(random_basis(kDim, 1), variance);
    const WeightedComponents found =
        find_weighted_components(rows, std::vector<double>(kDim * kDim), kDim, {1.0, 1e-9});
    const PrincipalComponents expected = find_principal_components(rows, kDim);
    EXPECT_NEAR(found.mean_weight, 1.0, 1e-8);
    EXPECT_EQ(find_weighted_components(rows, {}, kDim, {1.0, 1e-9}).basis, found.basis) << "no readers at all";
    for (size_t i = 0; i < kDim * kDim; ++i) {
        EXPECT_NEAR(std::abs(found.basis[i]), std::abs(expected.basis[i]), 1e-4F);
    }
    for (size_t j = 0; j < kDim; ++j) {
        EXPECT_NEAR(found.variance[j], expected.variance[j], 1e-5F);
    }
}

// x = sum of y_j row_j: errors of y are those that the readers see, y is uncorrelated, and the directions give x back.
TEST(WeightedComponents, ErrorsCountAsTheReadersSeeThem) {
    for (const size_t dim : {1, 2, 7, 16, 64}) {
        std::vector<float> variance(dim), energy(dim);
        for (size_t j = 0; j < dim; ++j) {
            variance[j] = 3.0F * std::pow(0.9F, static_cast<float>(j));
            energy[j] = 5.0F * std::pow(0.8F, static_cast<float>(j));
        }
        const std::vector<float> rows = planted_rows(random_basis(dim, 2), variance);
        const std::vector<double> readers = planted_moments(random_basis(dim, 3), energy);
        const WeightedComponents found = find_weighted_components(rows, readers, dim, {1.0, 1e-9});
        double mean = 0.0;
        for (size_t i = 0; i < dim; ++i) {
            mean += readers[i * dim + i] / static_cast<double>(dim);
        }
        // basis readers basis^T / mean = I, and basis^T diag(variance) basis = the second moments of the rows.
        const std::vector<double> moments = second_moments(rows, dim);
        for (size_t i = 0; i < dim; ++i) {
            for (size_t j = 0; j < dim; ++j) {
                double product = 0.0, moment = 0.0;
                for (size_t a = 0; a < dim; ++a) {
                    moment +=
                        double{found.variance[a]} * double{found.basis[a * dim + i]} * double{found.basis[a * dim + j]};
                    for (size_t b = 0; b < dim; ++b) {
                        product += double{found.basis[i * dim + a]} * readers[a * dim + b] *
                                   double{found.basis[j * dim + b]} / mean;
                    }
                }
                EXPECT_NEAR(product, i == j ? 1.0 : 0.0, 1e-3) << dim;
                EXPECT_NEAR(moment, moments[i * dim + j] / static_cast<double>(2 * dim), 1e-3) << dim;
            }
        }
        EXPECT_TRUE(std::ranges::is_sorted(found.variance, std::greater<>()));
        EXPECT_NEAR(found.mean_weight, 1.0, 1e-8);
        EXPECT_NEAR(found.energy, std::accumulate(variance.begin(), variance.end(), 0.0), 1e-3);
    }
}

TEST(WeightedComponents, TemperingBoundsWhatIsLost) {
    constexpr size_t kDim = 16;
    std::vector<float> energy(kDim);
    energy[0] = 1.0F;  // all readers look one way
    const std::vector<float> rows = planted_rows(random_basis(kDim, 4), std::vector(kDim, 1.0F));
    const Tempering tempering;
    const WeightedComponents found =
        find_weighted_components(rows, planted_moments(random_basis(kDim, 5), energy), kDim, tempering);
    EXPECT_NEAR(found.variance.front(), std::pow(kDim, tempering.power) + tempering.offset, 1e-3);
    EXPECT_NEAR(found.variance[1], tempering.offset, 1e-4);
    EXPECT_NEAR(found.variance.back(), tempering.offset, 1e-4);
    EXPECT_NEAR(found.mean_weight, std::pow(kDim, tempering.power) / kDim + tempering.offset, 1e-4);
}

}  // namespace
}  // namespace kvcodec
