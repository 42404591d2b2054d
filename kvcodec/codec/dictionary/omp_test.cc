#include "kvcodec/codec/dictionary/omp.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/test_targets.h"
#include "tests/exact_pursuit.h"

namespace kvcodec {
namespace {

struct Dictionary {
    size_t n_atoms, dim;
    std::vector<float> atoms;  // [n_atoms, dim]

    const float* atom(size_t j) const { return atoms.data() + j * dim; }
};

std::vector<float> gaussian(size_t n, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    std::generate(x.begin(), x.end(), [&] { return normal(random); });
    return x;
}

double dot(const float* a, const std::vector<double>& b) {
    double sum = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
        sum += static_cast<double>(a[i]) * b[i];
    }
    return sum;
}

double norm(const std::vector<double>& x) {
    double sum = 0.0;
    for (const double v : x) {
        sum += v * v;
    }
    return std::sqrt(sum);
}

Dictionary random_dictionary(size_t n_atoms, size_t dim, std::mt19937& random) {
    Dictionary dictionary{n_atoms, dim, gaussian(n_atoms * dim, random)};
    for (size_t j = 0; j < n_atoms; ++j) {
        float* atom = dictionary.atoms.data() + j * dim;
        const double length = norm({atom, atom + dim});
        std::transform(atom, atom + dim, atom, [&](float v) { return static_cast<float>(v / length); });
    }
    return dictionary;
}

struct Codes {
    size_t sparsity;
    std::vector<uint16_t> index;
    std::vector<float> coefficient;
    std::vector<uint8_t> count;
    std::vector<float> residual_energy;
};

Codes encode(const Dictionary& dictionary, const std::vector<float>& x, const OmpOptions& options,
             float* support_gram = nullptr) {
    const size_t n = x.size() / dictionary.dim, s = options.sparsity;
    Codes codes{s, std::vector<uint16_t>(n * s, 9), std::vector<float>(n * s, 9.0F), std::vector<uint8_t>(n, 9),
                std::vector<float>(n, 9.0F)};
    omp_encode(dictionary.atoms.data(), dictionary.n_atoms, dictionary.dim, x.data(), n, options, codes.index.data(),
               codes.coefficient.data(), codes.count.data(), codes.residual_energy.data(), support_gram);
    return codes;
}

// Replays one code in double precision: every choice was the best one (or tied with it), the pursuit ended neither
// early nor late, the coefficients are the least-squares fit and the residual energy is right.
void expect_matching_pursuit(const Dictionary& dictionary, const float* x, const Codes& codes, size_t row,
                             float relative_error, double fit_tolerance = 2e-5) {
    const size_t s = codes.sparsity, dim = dictionary.dim, count = codes.count[row];
    const uint16_t* index = codes.index.data() + row * s;
    const float* coefficient = codes.coefficient.data() + row * s;
    ASSERT_LE(count, s);

    std::vector<double> residual(x, x + dim);
    const double size = norm(residual);
    std::vector<std::vector<double>> basis;
    const auto best = [&] {
        double largest = 0.0;
        for (size_t j = 0; j < dictionary.n_atoms; ++j) {
            largest = std::max(largest, std::abs(dot(dictionary.atom(j), residual)));
        }
        return largest;
    };
    for (size_t k = 0; k < count; ++k) {
        ASSERT_LT(index[k], dictionary.n_atoms);
        ASSERT_EQ(std::count(index, index + count, index[k]), 1) << "an atom was chosen twice";
        EXPECT_GT(norm(residual), (relative_error - 1e-5) * size) << "the pursuit went on below the error threshold";
        EXPECT_GE(std::abs(dot(dictionary.atom(index[k]), residual)), best() - (s == kMaxSparsity ? 2e-4 : 1e-4) * size)
            << "choice " << k;
        std::vector<double> q(dictionary.atom(index[k]), dictionary.atom(index[k]) + dim);
        for (int pass = 0; pass < 2; ++pass) {
            for (const auto& b : basis) {
                double projection = 0.0;
                for (size_t i = 0; i < dim; ++i) projection += b[i] * q[i];
                for (size_t i = 0; i < dim; ++i) q[i] -= projection * b[i];
            }
        }
        const double length = norm(q);
        double projection = 0.0;
        for (size_t i = 0; i < dim; ++i) projection += (q[i] /= length) * residual[i];
        for (size_t i = 0; i < dim; ++i) residual[i] -= projection * q[i];
        basis.push_back(q);
    }
    if (count < s) {
        EXPECT_TRUE(norm(residual) <= (relative_error + 1e-5) * size || best() <= 1e-5 * size)
            << "stopped after " << count << " atoms with " << norm(residual) / size << " left";
    }
    std::vector<double> error(x, x + dim);
    for (size_t k = 0; k < count; ++k) {
        for (size_t i = 0; i < dim; ++i) error[i] -= static_cast<double>(coefficient[k]) * dictionary.atom(index[k])[i];
    }
    for (size_t k = 0; k < count; ++k) {
        EXPECT_LE(std::abs(dot(dictionary.atom(index[k]), error)), fit_tolerance * size) << "not the least-squares fit";
    }
    EXPECT_NEAR(norm(error), norm(residual), fit_tolerance * size);
    EXPECT_NEAR(std::sqrt(codes.residual_energy[row]), norm(error), fit_tolerance * size);
    for (size_t k = count; k < s; ++k) {
        EXPECT_EQ(index[k], 0);
        EXPECT_EQ(coefficient[k], 0.0F);
    }
}

void expect_matching_pursuits(const Dictionary& dictionary, const std::vector<float>& x, const Codes& codes,
                              float relative_error = 0.0F, double fit_tolerance = 2e-5) {
    for (size_t row = 0; row < codes.count.size(); ++row) {
        SCOPED_TRACE("row " + std::to_string(row));
        expect_matching_pursuit(dictionary, x.data() + row * dictionary.dim, codes, row, relative_error, fit_tolerance);
    }
}

// Every test runs with the code of each instruction set of this machine.
class Omp : public ::testing::TestWithParam<int64_t> {
  protected:
    void SetUp() override { use(GetParam()); }
    void TearDown() override { use(0); }

    std::mt19937 random_{42};

  private:
    static void use(int64_t target) {
        hwy::SetSupportedTargetsForTest(target);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
};

INSTANTIATE_TEST_SUITE_P(Targets, Omp, ::testing::ValuesIn(test_targets()), [](const auto& target) {
    return std::string(hwy::TargetName(target.param & -target.param)) +
           ((target.param & (target.param - 1)) != 0 ? "_and_older" : "");
});

TEST_P(Omp, IsMatchingPursuitForAllShapes) {
    struct Shape {
        size_t n_atoms, dim, sparsity, n;
    };
    // Both variants: the Gram matrix pays from about n_atoms / 10 vectors on for a dozen atoms of 64 elements, and
    // never for short vectors.
    for (const Shape& shape :
         {Shape{1024, 64, 12, 9},  Shape{1024, 128, 32, 3},  Shape{512, 80, 8, 7},   Shape{300, 96, 1, 5},
          Shape{256, 256, 24, 60}, Shape{256, 64, 32, 150},  Shape{100, 33, 5, 61},  Shape{100, 65, 5, 200},
          Shape{1, 64, 8, 20},     Shape{300, 128, 33, 150}, Shape{16, 64, 16, 17},  Shape{16, 64, 4, 40},
          Shape{1, 8, 3, 2},       Shape{50, 1, 4, 30},      Shape{40, 3, 2, 1},     Shape{129, 65, 20, 100},
          Shape{64, 7, 32, 50},    Shape{3001, 40, 8, 500},  Shape{40000, 8, 2, 2},  Shape{128, 64, 7, 300},
          Shape{128, 64, 9, 300},  Shape{200, 96, 17, 200},  Shape{256, 128, 64, 60}}) {
        SCOPED_TRACE("N=" + std::to_string(shape.n_atoms) + " d=" + std::to_string(shape.dim) +
                     " s=" + std::to_string(shape.sparsity) + " n=" + std::to_string(shape.n));
        const Dictionary dictionary = random_dictionary(shape.n_atoms, shape.dim, random_);
        const std::vector<float> x = gaussian(shape.n * shape.dim, random_);
        expect_matching_pursuits(dictionary, x, encode(dictionary, x, {shape.sparsity}));
    }
}

TEST_P(Omp, LargeBatchesEqualSmallOnes) {
    const Dictionary dictionary = random_dictionary(128, 64, random_);
    const std::vector<float> x = gaussian(200 * 64, random_);
    const Codes large = encode(dictionary, x, {16});
    for (size_t first = 0; first < 200; first += 4) {
        const Codes small = encode(dictionary, {x.begin() + first * 64, x.begin() + (first + 4) * 64}, {16});
        for (size_t i = 0; i < small.index.size(); ++i) {
            ASSERT_EQ(small.index[i], large.index[first * 16 + i]);
            ASSERT_NEAR(small.coefficient[i], large.coefficient[first * 16 + i], 1e-4);
        }
    }
}

TEST_P(Omp, RecoversExactlySparseVectorsAndStops) {
    const Dictionary dictionary = random_dictionary(256, 128, random_);
    for (const size_t n : {3, 300}) {
        std::vector<float> x(n * 128, 0.0F);
        std::vector<std::vector<uint16_t>> support(n);
        for (size_t row = 0; row < n; ++row) {
            while (support[row].size() < 4) {
                const uint16_t j = static_cast<uint16_t>(random_() % 256);
                if (std::count(support[row].begin(), support[row].end(), j) == 0) {
                    support[row].push_back(j);
                    const float c = (random_() % 2 ? 1.0F : -1.0F) * (1.0F + static_cast<float>(random_() % 100) / 100);
                    for (size_t i = 0; i < 128; ++i) x[row * 128 + i] += c * dictionary.atom(j)[i];
                }
            }
            std::sort(support[row].begin(), support[row].end());
        }
        const Codes codes = encode(dictionary, x, {16});
        size_t recovered = 0;
        for (size_t row = 0; row < n; ++row) {
            std::vector<uint16_t> found(codes.index.begin() + row * 16,
                                        codes.index.begin() + row * 16 + codes.count[row]);
            std::sort(found.begin(), found.end());
            recovered += found == support[row];
            EXPECT_LE(codes.residual_energy[row], 1e-10F);
        }
        EXPECT_GE(static_cast<double>(recovered), 0.9 * static_cast<double>(n));  // greedy: rarely a detour
        expect_matching_pursuits(dictionary, x, codes);
    }
}

TEST_P(Omp, StopsAtTheErrorThreshold) {
    const Dictionary dictionary = random_dictionary(256, 64, random_);
    for (const size_t n : {4, 200}) {
        for (const float relative_error : {0.5F, 0.1F, 0.03F, 0.01F}) {
            // Six atoms and, beside them, about as much as is allowed.
            std::vector<float> x = gaussian(n * 64, random_);
            for (size_t row = 0; row < n; ++row) {
                for (size_t i = 0; i < 64; ++i) x[row * 64 + i] *= relative_error * static_cast<float>(row % 5) / 8;
                for (size_t k = 0; k < 6; ++k) {
                    const float* atom = dictionary.atom(random_() % 256);
                    for (size_t i = 0; i < 64; ++i) x[row * 64 + i] += atom[i];
                }
            }
            const Codes codes = encode(dictionary, x, {32, relative_error});
            expect_matching_pursuits(dictionary, x, codes, relative_error);
            EXPECT_LT(*std::min_element(codes.count.begin(), codes.count.end()), 16);
        }
    }
}

TEST_P(Omp, CodesZeroAndNonFiniteVectorsAsZero) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const Dictionary dictionary = random_dictionary(64, 64, random_);
    for (const size_t n : {5, 100}) {
        std::vector<float> x = gaussian(n * 64, random_);
        std::fill(x.begin(), x.begin() + 64, 0.0F);
        x[64 + 3] = kNan;
        x[2 * 64 + 60] = kInfinity;
        x[3 * 64] = -kInfinity;
        const Codes codes = encode(dictionary, x, {8});
        for (size_t row = 0; row < 4; ++row) {
            EXPECT_EQ(codes.count[row], 0);
            EXPECT_TRUE(std::all_of(codes.coefficient.begin() + row * 8, codes.coefficient.begin() + (row + 1) * 8,
                                    [](float c) { return c == 0.0F; }));
        }
        EXPECT_EQ(codes.residual_energy[0], 0.0F);
        EXPECT_FALSE(std::isfinite(codes.residual_energy[1]));
        EXPECT_EQ(codes.count[4], 8);
        expect_matching_pursuit(dictionary, x.data() + 4 * 64, codes, 4, 0.0F);
    }
}

TEST_P(Omp, TakesVectorsOfAnySize) {
    const Dictionary dictionary = random_dictionary(64, 64, random_);
    const std::vector<float> x = gaussian(64, random_);
    const Codes codes = encode(dictionary, x, {8});
    for (const float scale : {1e-30F, 1e-12F, 1e12F, 1e30F}) {
        std::vector<float> scaled(x);
        for (float& v : scaled) v *= scale;
        const Codes other = encode(dictionary, scaled, {8});
        EXPECT_EQ(other.index, codes.index);
        for (size_t k = 0; k < 8; ++k) {
            EXPECT_NEAR(other.coefficient[k] / scale, codes.coefficient[k], 1e-4);
        }
    }
}

TEST_P(Omp, NeverChoosesDuplicateAtoms) {
    // 32 different ones; in the second case a large batch.
    struct Shape {
        size_t dim, sparsity, n;
    };
    for (const Shape& shape : {Shape{16, 32, 6}, Shape{16, 32, 200}, Shape{64, 12, 200}}) {
        const size_t dim = shape.dim;
        Dictionary dictionary = random_dictionary(64, dim, random_);
        for (size_t j = 1; j < 64; j += 2) {
            std::copy_n(dictionary.atom(j - 1), dim, dictionary.atoms.begin() + j * dim);
        }
        for (size_t i = 0; i < dim; ++i) {
            dictionary.atoms[60 * dim + i] *= -1.0F;
        }
        const std::vector<float> x = gaussian(shape.n * dim, random_);
        const Codes codes = encode(dictionary, x, {shape.sparsity});
        expect_matching_pursuits(dictionary, x, codes);
        EXPECT_LE(*std::max_element(codes.count.begin(), codes.count.end()), dim);  // as many span the space
    }
}

// Clusters of atoms a few degrees apart: pivots near what is taken.
Dictionary clustered_dictionary(float apart, std::mt19937& random) {
    Dictionary dictionary = random_dictionary(128, 64, random);
    for (size_t j = 0; j < 128; ++j) {
        const float* centre = dictionary.atom(j / 8 * 8);
        std::vector<float> atom(centre, centre + 64);
        double energy = 0.0;
        for (size_t i = 0; i < 64 && j % 8 != 0; ++i) {
            atom[i] += apart * dictionary.atom(j)[i];
        }
        for (const float v : atom) energy += static_cast<double>(v) * v;
        for (size_t i = 0; i < 64; ++i) {
            dictionary.atoms[j * 64 + i] = static_cast<float>(atom[i] / std::sqrt(energy));
        }
    }
    return dictionary;
}

// Every other one a difference of neighbours, which needs coefficients of several times the vector.
std::vector<float> differences_and_others(const Dictionary& clustered, std::mt19937& random) {
    std::vector<float> x = gaussian(200 * 64, random);
    for (size_t row = 0; row < 200; row += 2) {
        const size_t j = random() % 16 * 8;
        for (size_t i = 0; i < 64; ++i) {
            x[row * 64 + i] = clustered.atom(j + 1)[i] - clustered.atom(j + 2)[i];
        }
    }
    return x;
}

TEST_P(Omp, FitsAtomsThatAreNearlyDependent) {
    for (const float apart : {0.2F, 0.06F, 0.03F}) {
        const Dictionary dictionary = clustered_dictionary(apart, random_);
        const std::vector<float> x = differences_and_others(dictionary, random_);
        // 32 bits hold the factor to 1e-7 / pivot^2.
        expect_matching_pursuits(dictionary, x, encode(dictionary, x, {12}), 0.0F, 5e-4);
        expect_matching_pursuits(dictionary, x, encode(dictionary, x, {12, 0.3F}), 0.3F, 5e-4);
    }
}

TEST_P(Omp, GivesTheProductsOfEachSupportsAtoms) {
    constexpr size_t kDim = 80;
    const Dictionary dictionary = random_dictionary(200, kDim, random_);
    for (const size_t n : {2, 300}) {  // few vectors go another way than many
        const std::vector<float> x = gaussian(n * kDim, random_);
        for (const size_t sparsity : {1, 5, 8, 19}) {
            const size_t stride = gram_stride(sparsity);
            std::vector<float> gram(n * sparsity * stride);
            const Codes codes = encode(dictionary, x, {sparsity}, gram.data());
            EXPECT_TRUE(std::ranges::all_of(codes.count, [sparsity](size_t count) { return count == sparsity; }));
            for (size_t row = 0; row < n; ++row) {
                for (size_t i = 0; i < codes.count[row]; ++i) {
                    const float* atom = dictionary.atom(codes.index[row * sparsity + i]);
                    for (size_t j = 0; j < codes.count[row]; ++j) {
                        const float* other = dictionary.atom(codes.index[row * sparsity + j]);
                        EXPECT_NEAR(gram[(row * sparsity + i) * stride + j],
                                    std::inner_product(atom, atom + kDim, other, 0.0), 2e-4)
                            << n << " vectors, sparsity " << sparsity << ", row " << row << ": " << i << ", " << j;
                    }
                }
            }
        }
    }
}

// The same choices, and vectors that are hardly farther from x.
void expect_nearly_as_good(const Dictionary& dictionary, const std::vector<float>& x, size_t sparsity) {
    const size_t dim = dictionary.dim, n = x.size() / dim;
    const Codes refined = encode(dictionary, x, {sparsity});
    OmpOptions options{sparsity};
    options.refine = false;
    const Codes coarse = encode(dictionary, x, options);
    EXPECT_EQ(coarse.index, refined.index);
    EXPECT_EQ(coarse.count, refined.count);
    for (size_t row = 0; row < n; ++row) {
        double size = 0.0, apart = 0.0;
        for (size_t i = 0; i < dim; ++i) {
            double difference = 0.0;
            for (size_t k = row * sparsity; k < row * sparsity + coarse.count[row]; ++k) {
                difference +=
                    (double{coarse.coefficient[k]} - refined.coefficient[k]) * dictionary.atom(refined.index[k])[i];
            }
            apart += difference * difference;
            size += double{x[row * dim + i]} * x[row * dim + i];
        }
        EXPECT_LE(apart, 1e-6 * size) << "row " << row;
        const double left = coarse.residual_energy[row], wanted = refined.residual_energy[row];
        EXPECT_NEAR(left, wanted, 0.01 * wanted + 1e-7 * size) << "row " << row;
    }
}

TEST_P(Omp, FitsNearlyAsWellUnrefined) {
    for (const size_t dim : {64, 80, 128}) {
        const Dictionary dictionary = random_dictionary(512, dim, random_);
        std::vector<float> x = gaussian(400 * dim, random_);
        for (size_t row = 0; row < 400; row += 3) {  // nothing is left of these in the end, or next to nothing
            for (size_t i = 0; i < dim; ++i) {
                x[row * dim + i] *= row % 2 == 0 ? 0.0F : 0.03F;
                for (size_t k = 0; k < 4; ++k) {
                    x[row * dim + i] += dictionary.atom((17 * row + 101 * k) % 512)[i];
                }
            }
        }
        for (const size_t sparsity : {4, 8, 13, 24}) {
            SCOPED_TRACE("d=" + std::to_string(dim) + " s=" + std::to_string(sparsity));
            expect_nearly_as_good(dictionary, x, sparsity);
        }
    }
    for (const float apart : {0.3F, 0.2F, 0.06F}) {  // pivots on either side of what may stay unrefined
        SCOPED_TRACE("atoms are " + std::to_string(apart) + " apart");
        const Dictionary dictionary = clustered_dictionary(apart, random_);
        expect_nearly_as_good(dictionary, differences_and_others(dictionary, random_), 8);
    }
}

TEST_P(Omp, TakesNoAtomThatTheResidualIsOrthogonalTo) {
    // Of 32 atoms in the first 48 dimensions; most of the vector lies in the others.
    Dictionary dictionary = random_dictionary(32, 64, random_);
    for (size_t j = 0; j < 32; ++j) {
        std::fill_n(dictionary.atoms.begin() + j * 64 + 48, 16, 0.0F);
        double energy = 0.0;
        for (size_t i = 0; i < 64; ++i) energy += static_cast<double>(dictionary.atom(j)[i]) * dictionary.atom(j)[i];
        for (size_t i = 0; i < 64; ++i) {
            dictionary.atoms[j * 64 + i] = static_cast<float>(dictionary.atom(j)[i] / std::sqrt(energy));
        }
    }
    for (const size_t n : {2, 150}) {
        std::vector<float> x = gaussian(n * 64, random_);
        for (size_t row = 0; row < n; ++row) {
            for (size_t i = 0; i < 48; ++i) {
                x[row * 64 + i] = 2.0F * dictionary.atom(row % 32)[i] - dictionary.atom((row + 7) % 32)[i];
            }
        }
        const Codes codes = encode(dictionary, x, {16});
        expect_matching_pursuits(dictionary, x, codes);
        size_t exact = 0;
        for (const uint8_t count : codes.count) exact += count == 2;
        EXPECT_GE(static_cast<double>(exact), 0.8 * static_cast<double>(n));  // greedy: detours take a few more
    }
}

TEST_P(Omp, FitsAtomsThatAreNotQuiteNormalised) {
    Dictionary dictionary = random_dictionary(128, 64, random_);
    for (size_t j = 0; j < 128; ++j) {
        for (size_t i = 0; i < 64; ++i) dictionary.atoms[j * 64 + i] *= 1.0F + 0.001F * static_cast<float>(j % 3);
    }
    for (const size_t n : {3, 100}) {
        const std::vector<float> x = gaussian(n * 64, random_);
        expect_matching_pursuits(dictionary, x, encode(dictionary, x, {16}));
    }
}

TEST(OmpOfManyVectors, IsExact) {
    std::mt19937 random(5);
    Dictionary dictionary = random_dictionary(512, 64, random);
    for (size_t j = 500; j < 512; ++j) {  // duplicates
        std::copy_n(dictionary.atom(j - 12), 64, dictionary.atoms.begin() + static_cast<std::ptrdiff_t>(j * 64));
    }
    constexpr size_t kVectors = 6000;
    std::vector<float> x = gaussian(kVectors * 64, random);
    for (size_t row = 0; row < kVectors; ++row) {
        float* vector = x.data() + row * 64;
        if (row % 50 == 0) {
            std::fill_n(vector, 64, 0.0F);
        } else if (row % 50 == 1) {
            std::copy_n(x.data() + (row / 50 + 10) * 64, 64, vector);  // a duplicate
        } else if (row % 50 == 2) {
            std::copy_n(dictionary.atom(row % 512), 64, vector);
        } else if (row % 50 == 3) {  // of five atoms
            std::fill_n(vector, 64, 0.0F);
            for (size_t k = 0; k < 5; ++k) {
                const float* atom = dictionary.atom(random() % 500);
                for (size_t i = 0; i < 64; ++i) vector[i] += static_cast<float>(k + 1) * atom[i];
            }
        } else if (row % 50 < 10) {  // tiny and huge
            const float size = std::exp2(static_cast<float>(row % 50 * 30) - 195.0F);
            std::transform(vector, vector + 64, vector, [size](float v) { return v * size; });
        }
    }
    const PursuitComparison comparison = compare_with_exact_pursuit(dictionary.atoms, 64, x, 8);
    EXPECT_EQ(comparison.n_equal + comparison.n_tied, kVectors);
    // Where one of two equal atoms is chosen: a third of the vectors has such an atom among its eight, and which of the
    // two comes first depends on the order of sums.
    EXPECT_LE(comparison.n_tied, kVectors / 5);
}

TEST(OmpArguments, AreChecked) {
    const std::vector<float> x(8, 1.0F);
    std::vector<uint16_t> index(kMaxSparsity);
    std::vector<float> coefficient(kMaxSparsity);
    uint8_t count = 0;
    const auto run = [&](size_t n_atoms, size_t dim, size_t n, size_t sparsity) {
        omp_encode(x.data(), n_atoms, dim, x.data(), n, {sparsity}, index.data(), coefficient.data(), &count, nullptr);
    };
    EXPECT_THROW(run(0, 8, 1, 1), Error);
    EXPECT_THROW(run(kMaxAtoms + 1, 8, 1, 1), Error);
    EXPECT_THROW(run(1, 0, 1, 1), Error);
    EXPECT_THROW(run(1, 8, 1, 0), Error);
    EXPECT_THROW(run(1, 8, 1, kMaxSparsity + 1), Error);
    EXPECT_NO_THROW(run(1, 8, 0, 1));
    EXPECT_NO_THROW(run(1, 8, 1, 1));
    EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace kvcodec
