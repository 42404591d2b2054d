#include "kvcodec/learn/dictionary_learning.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

constexpr size_t kDim = 32;
constexpr size_t kAtoms = 40;
constexpr size_t kSparsity = 3;

std::vector<float> planted_dictionary() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> atoms(kAtoms * kDim);
    for (size_t j = 0; j < kAtoms; ++j) {
        float* atom = atoms.data() + j * kDim;
        std::generate_n(atom, kDim, [&] { return normal(random); });
        const float norm = std::sqrt(std::inner_product(atom, atom + kDim, atom, 0.0F));
        std::transform(atom, atom + kDim, atom, [norm](float v) { return v / norm; });
    }
    return atoms;
}

// n rows, each a combination of kSparsity atoms with coefficients of magnitude 1 to 2.
std::vector<float> planted_rows(size_t n) {
    const std::vector<float> atoms = planted_dictionary();
    std::mt19937 random(2);
    std::vector<float> rows(n * kDim, 0.0F);
    for (size_t i = 0; i < n; ++i) {
        for (size_t k = 0; k < kSparsity; ++k) {
            const size_t j = random() % kAtoms;
            const float c = (random() % 2 == 0 ? 1.0F : -1.0F) * (1.0F + static_cast<float>(random() % 1000) / 1000);
            for (size_t e = 0; e < kDim; ++e) {
                rows[i * kDim + e] += c * atoms[j * kDim + e];
            }
        }
    }
    return rows;
}

LearnOptions options(size_t sweeps) {
    LearnOptions options;
    options.n_atoms = kAtoms;
    options.sparsity = kSparsity;
    options.sweeps = sweeps;
    return options;
}

TEST(DictionaryLearning, RecoversAPlantedDictionary) {
    const LearnedDictionary learned = learn_dictionary(planted_rows(3000), kDim, options(60));
    const std::vector<float> planted = planted_dictionary();
    size_t recovered = 0;
    for (size_t j = 0; j < kAtoms; ++j) {
        float best = 0.0F;
        for (size_t i = 0; i < kAtoms; ++i) {
            const float* atom = learned.atoms.data() + i * kDim;
            best = std::max(best, std::abs(std::inner_product(atom, atom + kDim, planted.data() + j * kDim, 0.0F)));
        }
        recovered += best > 0.99F;
    }
    EXPECT_GE(recovered, kAtoms * 3 / 4);  // K-SVD ends in a local optimum
    EXPECT_LT(learned.heldout_error, 0.25F);
}

TEST(DictionaryLearning, AtomsHaveUnitNormAndLevelsAscend) {
    const LearnedDictionary learned = learn_dictionary(planted_rows(2000), kDim, options(3));
    ASSERT_EQ(learned.atoms.size(), kAtoms * kDim);
    for (size_t j = 0; j < kAtoms; ++j) {
        const float* atom = learned.atoms.data() + j * kDim;
        EXPECT_NEAR(std::inner_product(atom, atom + kDim, atom, 0.0F), 1.0F, 1e-5F);
    }
    EXPECT_GT(learned.levels.front(), 0.0F);
    EXPECT_TRUE(std::is_sorted(learned.levels.begin(), learned.levels.end(), std::less_equal<>()));
    EXPECT_GT(learned.levels.back(), 0.9F);
    EXPECT_LE(learned.levels.back(), 1.0F);
}

TEST(DictionaryLearning, SweepsLowerTheErrorAndTheBestIsKept) {
    LearnOptions with_progress = options(10);
    std::vector<float> errors;
    with_progress.progress = [&](size_t sweeps_done, float error) {
        errors.push_back(error);
        EXPECT_EQ(sweeps_done, errors.size());
    };
    const std::vector<float> rows = planted_rows(3000);
    const float initial = learn_dictionary(rows, kDim, options(0)).heldout_error;
    const LearnedDictionary learned = learn_dictionary(rows, kDim, with_progress);
    ASSERT_EQ(errors.size(), 10);
    EXPECT_LT(learned.heldout_error, 0.7F * initial);
    EXPECT_EQ(learned.heldout_error, *std::min_element(errors.begin(), errors.end()));
}

LearnOptions gradient_options(size_t sweeps) {
    LearnOptions with_gradient = options(sweeps);
    with_gradient.learner = DictionaryLearner::kGradient;
    with_gradient.learning_rate = 3e-2F;
    return with_gradient;
}

TEST(DictionaryLearning, TheGradientLearnsToo) {
    const std::vector<float> rows = planted_rows(3000);
    const float initial = learn_dictionary(rows, kDim, gradient_options(0)).heldout_error;
    const LearnedDictionary learned = learn_dictionary(rows, kDim, gradient_options(20));
    EXPECT_LT(learned.heldout_error, 0.6F * initial);
    for (size_t j = 0; j < kAtoms; ++j) {
        const float* atom = learned.atoms.data() + j * kDim;
        EXPECT_NEAR(std::inner_product(atom, atom + kDim, atom, 0.0F), 1.0F, 1e-5F);
    }
    EXPECT_EQ(learned.atoms, learn_dictionary(rows, kDim, gradient_options(20)).atoms);
}

TEST(DictionaryLearning, DependsOnTheSeedOnly) {
    const std::vector<float> rows = planted_rows(1000);
    LearnOptions other = options(3);
    other.seed = 7;
    const LearnedDictionary a = learn_dictionary(rows, kDim, options(3));
    const LearnedDictionary b = learn_dictionary(rows, kDim, options(3));
    EXPECT_EQ(a.atoms, b.atoms);
    EXPECT_EQ(a.levels, b.levels);
    EXPECT_EQ(a.heldout_error, b.heldout_error);
    EXPECT_NE(a.atoms, learn_dictionary(rows, kDim, other).atoms);
}

TEST(DictionaryLearning, StopsBetweenSweepsWithTheBestSoFar) {
    std::atomic<bool> stop = false;
    LearnOptions stoppable = options(1000);
    stoppable.stop = &stop;
    size_t sweeps = 0;
    stoppable.progress = [&](size_t sweeps_done, float) {
        sweeps = sweeps_done;
        stop = sweeps_done == 2;
    };
    const std::vector<float> rows = planted_rows(1000);
    const LearnedDictionary stopped = learn_dictionary(rows, kDim, stoppable);
    EXPECT_EQ(sweeps, 2);
    EXPECT_EQ(stopped.atoms, learn_dictionary(rows, kDim, options(2)).atoms);
    EXPECT_EQ(learn_dictionary(rows, kDim, stoppable).atoms, learn_dictionary(rows, kDim, options(0)).atoms);
}

TEST(DictionaryLearning, LeavesOutZeroAndNonFiniteRows) {
    std::vector<float> rows = planted_rows(1000);
    for (size_t i = 0; i < 1000; i += 50) {
        std::fill_n(rows.begin() + i * kDim, kDim, 0.0F);
        rows[(i + 1) * kDim] = std::numeric_limits<float>::quiet_NaN();
        rows[(i + 2) * kDim + 5] = std::numeric_limits<float>::infinity();
    }
    const LearnedDictionary learned = learn_dictionary(rows, kDim, options(20));
    EXPECT_TRUE(std::all_of(learned.atoms.begin(), learned.atoms.end(), [](float v) { return std::isfinite(v); }));
    EXPECT_LT(learned.heldout_error, 0.4F);
}

TEST(DictionaryLearning, CopesWithRepeatedRows) {
    std::vector<float> rows;
    const std::vector<float> few = planted_rows(8);
    for (int i = 0; i < 100; ++i) {
        rows.insert(rows.end(), few.begin(), few.end());
    }
    const LearnedDictionary learned = learn_dictionary(rows, kDim, options(3));
    EXPECT_LT(learned.heldout_error, 1e-4F);
}

TEST(DictionaryLearning, TooFewRowsAreAnError) {
    try {
        learn_dictionary(planted_rows(kAtoms), kDim, options(1));
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("40 atoms"), std::string::npos) << error.what();
    }
    EXPECT_THROW(learn_dictionary({}, kDim, options(1)), Error);
}

}  // namespace
}  // namespace kvcodec
