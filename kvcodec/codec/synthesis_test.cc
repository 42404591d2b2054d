#include "kvcodec/codec/synthesis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

struct Shape {
    size_t n_rows, width;
};

class SynthesisTest : public testing::TestWithParam<Shape> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

    const size_t n_rows_ = GetParam().n_rows;
    const size_t width_ = GetParam().width;
    const size_t stride_ =
        (n_rows_ + Synthesis::kStrideMultiple - 1) / Synthesis::kStrideMultiple * Synthesis::kStrideMultiple;
    std::mt19937 rng_{5};

    std::vector<float> random_floats(size_t n) {
        std::normal_distribution<float> normal;
        std::vector<float> x(n);
        std::ranges::generate(x, [&] { return normal(rng_); });
        return x;
    }
    std::vector<int8_t> random_levels(size_t n) {
        std::uniform_int_distribution<int> level(-127, 127);
        std::vector<int8_t> levels(n * stride_);
        std::ranges::generate(levels, [&] { return static_cast<int8_t>(level(rng_)); });
        return levels;
    }
    /// The whole, and one of two parts where there are two.
    std::vector<Synthesis::Part> parts() const {
        std::vector<Synthesis::Part> parts = {{0, width_}};
        if (width_ > 16) {
            parts.push_back({16, width_ - 16});
        }
        return parts;
    }
};

TEST_P(SynthesisTest, RowsAreRoundedToA127thOfEachElementsLargest) {
    std::vector<float> rows = random_floats(n_rows_ * width_);
    for (size_t j = 0; j < n_rows_; ++j) {
        rows[j * width_ + width_ / 2] = 0.0F;
    }
    const Synthesis synthesis(rows, n_rows_, width_);
    for (size_t i = 0; i < width_; ++i) {
        float largest = 0.0F;
        for (size_t j = 0; j < n_rows_; ++j) {
            largest = std::max(largest, std::abs(rows[j * width_ + i]));
        }
        for (size_t j = 0; j < n_rows_; ++j) {
            ASSERT_NEAR(synthesis.at(j, i), rows[j * width_ + i], largest * (0.501 / 127));
        }
    }
}

TEST_P(SynthesisTest, RebuildsOnEveryTarget) {
    const std::vector<float> rows = random_floats(n_rows_ * width_);
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        const Synthesis synthesis(rows, n_rows_, width_);
        for (const size_t n : {1, 4, 7}) {
            const std::vector<int8_t> levels = random_levels(n);
            const std::vector<float> scale = random_floats(n);
            for (const Synthesis::Part part : parts()) {
                std::vector<float> x(n * part.size);
                synthesis.rebuild(levels.data(), stride_, scale.data(), n, part, x.data());
                for (size_t row = 0; row < n; ++row) {
                    for (size_t i = 0; i < part.size; ++i) {
                        double expected = 0.0, size = 0.0;
                        for (size_t j = 0; j < n_rows_; ++j) {
                            const double product = static_cast<double>(levels[row * stride_ + j]) *
                                                   double{synthesis.at(j, part.begin + i)};
                            expected += product;
                            size += std::abs(product);
                        }
                        ASSERT_NEAR(x[row * part.size + i], double{scale[row]} * expected,
                                    1e-6 * std::abs(double{scale[row]}) * size)
                            << hwy::TargetName(target);
                    }
                }
            }
        }
    }
}

TEST_P(SynthesisTest, LeadsIntoCodeSpaceAndOutOnEveryTarget) {
    const std::vector<float> rows = random_floats(n_rows_ * width_);
    for (const int64_t target : test_targets()) {
        hwy::SetSupportedTargetsForTest(target);
        const Synthesis synthesis(rows, n_rows_, width_);
        for (const size_t lanes : {4, 12}) {
            for (const Synthesis::Part part : parts()) {
                const std::vector<float> q = random_floats(lanes * part.size), acc = random_floats(n_rows_ * lanes);
                std::vector<float> table(n_rows_ * lanes), out(lanes * part.size, 0.5F);
                synthesis.prepare(q.data(), lanes, 0, n_rows_ / 2, part, table.data());
                synthesis.prepare(q.data(), lanes, n_rows_ / 2, n_rows_, part, table.data());
                synthesis.expand(acc.data(), lanes, 0, 16, part, out.data());
                synthesis.expand(acc.data(), lanes, 16, part.size, part, out.data());
                for (size_t lane = 0; lane < lanes; ++lane) {
                    for (size_t j = 0; j < n_rows_; ++j) {
                        double expected = 0.0;
                        for (size_t i = 0; i < part.size; ++i) {
                            expected += double{q[lane * part.size + i]} * double{synthesis.at(j, part.begin + i)};
                        }
                        ASSERT_NEAR(table[j * lanes + lane], expected, 1e-3) << hwy::TargetName(target);
                    }
                    for (size_t i = 0; i < part.size; ++i) {
                        double expected = 0.5;
                        for (size_t j = 0; j < n_rows_; ++j) {
                            expected += double{acc[j * lanes + lane]} * double{synthesis.at(j, part.begin + i)};
                        }
                        ASSERT_NEAR(out[lane * part.size + i], expected, 1e-3) << hwy::TargetName(target);
                    }
                }
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SynthesisTest,
                         testing::Values(Shape{4, 16}, Shape{8, 64}, Shape{48, 80}, Shape{72, 96}, Shape{112, 192},
                                         Shape{256, 256}, Shape{1024, 128}),
                         [](const auto& shape) {
                             return std::to_string(shape.param.n_rows) + "x" + std::to_string(shape.param.width);
                         });

}  // namespace
}  // namespace kvcodec
