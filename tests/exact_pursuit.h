// A plain orthogonal matching pursuit in double precision, to compare with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/codec/dictionary/omp.h"

namespace kvcodec {

/// Counts of a comparison of omp_encode() with the exact pursuit.
struct PursuitComparison {
    size_t n_equal = 0;  ///< the same support in the same order, coefficients within the tolerance
    size_t n_tied = 0;   ///< supports part where two atoms are equally good to four digits
};

/// At each step the atom of the largest |correlation| with the residual joins the support, and all coefficients become
/// the least-squares fit, by the normal equations. Expects that omp_encode() does the same for rows x [n, dim]: its
/// coefficients may miss by 1e-4 of the vector's norm.
inline PursuitComparison compare_with_exact_pursuit(std::span<const float> atoms, size_t dim, std::span<const float> x,
                                                    size_t sparsity) {
    constexpr double kTie = 1e-4, kTolerance = 1e-4, kNoise = 1e-6;
    const size_t n_atoms = atoms.size() / dim, n = x.size() / dim;
    std::vector<uint16_t> index(n * sparsity);
    std::vector<float> coefficient(n * sparsity);
    std::vector<uint8_t> count(n);
    omp_encode(atoms.data(), n_atoms, dim, x.data(), n, {sparsity}, index.data(), coefficient.data(), count.data(),
               nullptr);

    PursuitComparison comparison;
    for (size_t row = 0; row < n; ++row) {
        const std::vector<double> vector(x.begin() + static_cast<std::ptrdiff_t>(row * dim),
                                         x.begin() + static_cast<std::ptrdiff_t>((row + 1) * dim));
        double norm = 0.0;
        for (const double v : vector) {
            norm += v * v;
        }
        norm = std::sqrt(norm);
        std::vector<double> residual = vector;
        std::vector<size_t> support;
        std::vector<double> fit;
        bool tied = false;
        while (support.size() < sparsity && norm > 0.0) {
            double best = 0.0, found = 0.0;
            size_t best_atom = 0;
            const size_t k = support.size();
            for (size_t j = 0; j < n_atoms; ++j) {
                double correlation = 0.0;
                for (size_t i = 0; i < dim; ++i) {
                    correlation += residual[i] * static_cast<double>(atoms[j * dim + i]);
                }
                if (std::abs(correlation) > best) {
                    best = std::abs(correlation);
                    best_atom = j;
                }
                if (k < count[row] && j == index[row * sparsity + k]) {
                    found = std::abs(correlation);
                }
            }
            if (best < kNoise * norm) {
                break;
            }
            if (k >= count[row] || index[row * sparsity + k] != best_atom) {
                tied = k < count[row] && best - found < kTie * norm;
                EXPECT_TRUE(tied) << "row " << row << ": choice " << k << " is not the best one";
                break;
            }
            support.push_back(best_atom);
            // Gram matrix and right-hand side, solved by Gauss-Jordan with pivots.
            const size_t size = support.size();
            std::vector<double> system(size * (size + 1));
            for (size_t a = 0; a < size; ++a) {
                for (size_t i = 0; i < dim; ++i) {
                    const double atom = static_cast<double>(atoms[support[a] * dim + i]);
                    for (size_t b = 0; b < size; ++b) {
                        system[a * (size + 1) + b] += atom * static_cast<double>(atoms[support[b] * dim + i]);
                    }
                    system[a * (size + 1) + size] += atom * vector[i];
                }
            }
            for (size_t column = 0; column < size; ++column) {
                size_t pivot = column;
                for (size_t a = column; a < size; ++a) {
                    if (std::abs(system[a * (size + 1) + column]) > std::abs(system[pivot * (size + 1) + column])) {
                        pivot = a;
                    }
                }
                for (size_t b = 0; b <= size; ++b) {
                    std::swap(system[column * (size + 1) + b], system[pivot * (size + 1) + b]);
                }
                for (size_t a = 0; a < size; ++a) {
                    const double factor =
                        a == column ? 0.0 : system[a * (size + 1) + column] / system[column * (size + 1) + column];
                    for (size_t b = 0; b <= size; ++b) {
                        system[a * (size + 1) + b] -= factor * system[column * (size + 1) + b];
                    }
                }
            }
            fit.resize(size);
            residual = vector;
            for (size_t a = 0; a < size; ++a) {
                fit[a] = system[a * (size + 1) + size] / system[a * (size + 1) + a];
                for (size_t i = 0; i < dim; ++i) {
                    residual[i] -= fit[a] * static_cast<double>(atoms[support[a] * dim + i]);
                }
            }
        }
        if (tied) {
            ++comparison.n_tied;
            continue;
        }
        EXPECT_EQ(count[row], support.size()) << "row " << row;
        for (size_t k = 0; k < std::min<size_t>(count[row], support.size()); ++k) {
            EXPECT_NEAR(static_cast<double>(coefficient[row * sparsity + k]), fit[k], kTolerance * norm)
                << "row " << row << ", atom " << k;
        }
        ++comparison.n_equal;
    }
    return comparison;
}

}  // namespace kvcodec
