#include "kvcodec/codec/mean/rotating_mean.h"

#include <gtest/gtest.h>

#include <hwy/targets.h>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

using Pairing = RopeParams::Pairing;

struct Shape {
    std::string name;
    Pairing pairing;
    uint32_t n_dims;
    size_t dim;
};

std::vector<Shape> shapes() {
    return {{"Halves64", Pairing::kHalves, 64, 64},          {"Adjacent80Partial20", Pairing::kAdjacent, 20, 80},
            {"Halves80Partial20", Pairing::kHalves, 20, 80}, {"Adjacent96", Pairing::kAdjacent, 96, 96},
            {"Halves128", Pairing::kHalves, 128, 128},       {"Adjacent256Partial64", Pairing::kAdjacent, 64, 256},
            {"Halves256", Pairing::kHalves, 256, 256},       {"None64", Pairing::kNone, 0, 64}};
}

Rope make_rope(const Shape& shape) {
    RopeParams p;
    p.pairing = shape.pairing;
    p.n_dims = shape.n_dims;
    p.freq_base = 1e6F;
    p.attn_factor = shape.dim == 96 ? 1.2F : 1.0F;
    return {p, shape.dim};
}

std::vector<float> random_vector(size_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

double norm(const float* x, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += double{x[i]} * x[i];
    }
    return std::sqrt(sum);
}

/// R_t b in double.
std::vector<double> rotated(const Rope& rope, const float* b, size_t dim, int64_t t) {
    std::vector<double> y(b, b + dim);
    for (size_t i = 0; i < rope.n_pairs(); ++i) {
        const double angle = rope.omega(i) * static_cast<double>(t);
        const double c = std::cos(angle) * rope.magnitude();
        const double s = std::sin(angle) * rope.magnitude();
        y[rope.first(i)] = b[rope.first(i)] * c - b[rope.second(i)] * s;
        y[rope.second(i)] = b[rope.first(i)] * s + b[rope.second(i)] * c;
    }
    return y;
}

std::vector<std::vector<int32_t>> position_lists(std::mt19937& rng) {
    const auto consecutive = [](int32_t first, int32_t n) {
        std::vector<int32_t> t(static_cast<size_t>(n));
        for (int32_t i = 0; i < n; ++i) {
            t[static_cast<size_t>(i)] = first + i;
        }
        return t;
    };
    std::vector<std::vector<int32_t>> lists = {
        consecutive(0, 1),    consecutive(0, 64),       consecutive(4090, 9),   consecutive(131000, 63),
        consecutive(-20, 40), consecutive(1048570, 20), consecutive(70000, 33), {7, 7, 7, 7, 7, 7, 7, 7, 7, 7}};
    std::vector<int32_t> interleaved;
    std::vector<int32_t> two_runs = consecutive(500, 30);
    for (int32_t i = 0; i < 30; ++i) {
        interleaved.push_back(i % 2 == 0 ? 100 + i / 2 : 90000 + i / 2);
        two_runs.push_back(100 + i);
    }
    lists.push_back(interleaved);
    lists.push_back(two_runs);
    std::uniform_int_distribution<int32_t> any(0, 131072);
    for (const size_t n : {2, 17, 64}) {
        std::vector<int32_t> random(n);
        for (int32_t& t : random) {
            t = any(rng);
        }
        lists.push_back(random);
    }
    return lists;
}

/// Whether some positions are scored as a run.
bool has_run(const std::vector<int32_t>& positions) {
    size_t longest = 1;
    for (size_t i = 1, run = 1; i < positions.size(); ++i) {
        run = positions[i] == positions[i - 1] + 1 ? run + 1 : 1;
        longest = std::max(longest, run);
    }
    return longest >= 8;
}

class RotatingMeanTest : public testing::TestWithParam<Shape> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(RotatingMeanTest, SubtractAddAndScoreAgreeWithDouble) {
    const Shape& shape = GetParam();
    const size_t dim = shape.dim;
    const size_t stride = dim + 3;
    constexpr size_t kHeads = 3;
    constexpr double kTolerance = 3e-6;
    std::mt19937 rng(static_cast<unsigned>(dim));
    const Rope rope = make_rope(shape);
    const std::vector<float> mean = random_vector(kHeads * dim, rng);
    const RotatingMean rotating(std::make_shared<RopeTables>(rope), mean, kHeads, 0.0);
    // Runs of positions are scored in 16 bits: five standard deviations of what their rounding sums up to.
    const double run_tolerance = kTolerance + 5e-5 * std::sqrt(static_cast<double>(rope.n_pairs()));
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const std::vector<int32_t>& positions : position_lists(rng)) {
            const size_t n = positions.size();
            const size_t head = rng() % kHeads;
            const float* b = mean.data() + head * dim;
            const double b_norm = norm(b, dim) * rope.magnitude();
            const std::vector<float> x = random_vector(n * stride, rng);
            std::vector<float> residual = x;
            rotating.subtract(head, positions.data(), n, residual.data(), stride);
            for (size_t i = 0; i < n; ++i) {
                const std::vector<double> expected = rotated(rope, b, dim, positions[i]);
                for (size_t j = 0; j < dim; ++j) {
                    ASSERT_NEAR(residual[i * stride + j], x[i * stride + j] - expected[j], kTolerance) << i << " " << j;
                }
                for (size_t j = dim; j < stride; ++j) {
                    ASSERT_EQ(residual[i * stride + j], x[i * stride + j]) << "wrote past the row";
                }
            }
            rotating.add(head, positions.data(), n, residual.data(), stride);
            for (size_t i = 0; i < x.size(); ++i) {
                ASSERT_NEAR(residual[i], x[i], kTolerance);
            }
            for (const size_t lanes : {4, 8, 12, 32}) {
                std::vector<float> q = random_vector(lanes * dim, rng);
                const size_t n_active = lanes - rng() % std::min<size_t>(lanes + 1, 7);
                std::fill(q.begin() + static_cast<std::ptrdiff_t>(n_active * dim), q.end(), 0.0F);
                std::vector<float> prepared(rotating.prepared_floats(lanes));
                rotating.prepare(head, q.data(), lanes, prepared.data());
                const std::vector<float> before = random_vector((n + 1) * lanes, rng);
                std::vector<float> s = before;
                rotating.score(prepared.data(), lanes, positions.data(), n, s.data());
                for (size_t i = 0; i < n; ++i) {
                    const std::vector<double> key = rotated(rope, b, dim, positions[i]);
                    for (size_t lane = 0; lane < lanes; ++lane) {
                        double expected = before[i * lanes + lane];
                        for (size_t j = 0; j < dim; ++j) {
                            expected += q[lane * dim + j] * key[j];
                        }
                        const double scale = norm(q.data() + lane * dim, dim) * b_norm;
                        const double tolerance = has_run(positions) ? run_tolerance : kTolerance;
                        ASSERT_NEAR(s[i * lanes + lane], expected, tolerance * scale)
                            << "position " << positions[i] << " lane " << lane << " of " << lanes;
                    }
                }
                for (size_t i = n * lanes; i < s.size(); ++i) {
                    ASSERT_EQ(s[i], before[i]) << "wrote past the last cell";
                }
            }
        }
    }
}

TEST_P(RotatingMeanTest, TablesRotateAndUnrotateAsDoubleDoes) {
    const Shape& shape = GetParam();
    const Rope rope = make_rope(shape);
    const RopeTables tables(rope);
    std::mt19937 rng(17);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        for (const std::vector<int32_t>& positions : position_lists(rng)) {
            const size_t n = positions.size();
            const size_t stride = shape.dim + 3;
            const std::vector<float> x = random_vector(n * stride, rng);
            std::vector<float> y = x;
            tables.rotate(positions.data(), n, y.data(), stride);
            for (size_t i = 0; i < n; ++i) {
                const std::vector<double> expected = rotated(rope, &x[i * stride], shape.dim, positions[i]);
                for (size_t j = 0; j < shape.dim; ++j) {
                    ASSERT_NEAR(y[i * stride + j], expected[j], 2e-5) << "position " << positions[i];
                }
                for (size_t j = shape.dim; j < stride; ++j) {
                    ASSERT_EQ(y[i * stride + j], x[i * stride + j]);
                }
            }
            tables.unrotate(positions.data(), n, y.data(), stride);
            for (size_t i = 0; i < y.size(); ++i) {
                ASSERT_NEAR(y[i], x[i], 2e-5);
            }
            const std::vector<float> mean = random_vector(stride, rng);
            std::vector<float> with_mean = x, sum = x;
            for (size_t i = 0; i < sum.size(); ++i) {
                sum[i] += mean[i % stride];
            }
            tables.rotate(positions.data(), n, sum.data(), stride);
            tables.rotate(positions.data(), n, with_mean.data(), stride, mean.data());
            for (size_t i = 0; i < sum.size(); ++i) {
                ASSERT_NEAR(with_mean[i], sum[i], 1e-5);
            }
        }
    }
    hwy::SetSupportedTargetsForTest(0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, RotatingMeanTest, testing::ValuesIn(shapes()),
                         [](const auto& test) { return test.param.name; });

TEST(RotatingMean, DropsPairsWithoutEnergyEverywhere) {
    const Rope rope = make_rope({"", Pairing::kHalves, 128, 128});
    std::mt19937 rng(1);
    std::vector<float> mean = random_vector(256, rng);
    for (size_t pair = 0; pair < 64; ++pair) {
        const float size = pair % 16 == 5 ? 100.0F : 1e-4F;
        mean[pair] *= size;
        mean[pair + 64] *= size;
    }
    const RotatingMean rotating(std::make_shared<RopeTables>(rope), mean, 2);
    EXPECT_EQ(rotating.n_pairs(0), 4U);
    EXPECT_EQ(rotating.n_pairs(1), 64U);

    const int32_t t = 4321;
    std::vector<float> key(128, 0.0F);
    rotating.add(0, &t, 1, key.data(), key.size());
    const std::vector<double> exact = rotated(rope, mean.data(), 128, t);
    double error = 0.0;
    for (size_t i = 0; i < 128; ++i) {
        error += (key[i] - exact[i]) * (key[i] - exact[i]);
    }
    const double b_norm = norm(mean.data(), 128);
    EXPECT_LT(std::sqrt(error), 1e-4 * b_norm);

    const std::vector<float> q = random_vector(4 * 128, rng);
    std::vector<int32_t> positions(RotatingMean::kBlock);
    std::iota(positions.begin(), positions.end(), t);
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        std::vector<float> prepared(rotating.prepared_floats(4));
        rotating.prepare(0, q.data(), 4, prepared.data());
        std::vector<float> keys(positions.size() * 128, 0.0F), s(positions.size() * 4, 0.0F);
        rotating.add(0, positions.data(), positions.size(), keys.data(), 128);
        rotating.score(prepared.data(), 4, positions.data(), positions.size(), s.data());
        for (size_t cell = 0; cell < positions.size(); ++cell) {
            for (size_t lane = 0; lane < 4; ++lane) {
                double product = 0.0;
                for (size_t i = 0; i < 128; ++i) {
                    product += double{q[lane * 128 + i]} * keys[cell * 128 + i];
                }
                ASSERT_NEAR(s[cell * 4 + lane], product, 4e-4 * b_norm * norm(q.data() + lane * 128, 128));
            }
        }
    }
    hwy::SetSupportedTargetsForTest(0);
}

TEST(RotatingMean, ZeroMeanKeepsNothing) {
    const Rope rope = make_rope({"", Pairing::kAdjacent, 64, 64});
    const RotatingMean rotating(std::make_shared<RopeTables>(rope), std::vector<float>(64, 0.0F), 1);
    EXPECT_FALSE(rotating.empty());
    EXPECT_EQ(rotating.n_pairs(0), 0U);
    EXPECT_TRUE(RotatingMean().empty());
    EXPECT_TRUE(rotating.rotates());
    EXPECT_FALSE(RotatingMean().rotates());
    const Rope none(RopeParams{}, 64);
    EXPECT_FALSE(RotatingMean(std::make_shared<RopeTables>(none), std::vector<float>(64, 1.0F), 1).rotates());
}

TEST(RotatingMean, RefusesWhatDoesNotFit) {
    const auto tables = std::make_shared<RopeTables>(make_rope({"", Pairing::kHalves, 64, 64}));
    EXPECT_THROW(RotatingMean(tables, std::vector<float>(63), 1), Error);
    EXPECT_THROW(RotatingMean(tables, std::vector<float>(129), 2), Error);
    EXPECT_THROW(RotatingMean(tables, std::vector<float>(64), 0), Error);
    EXPECT_THROW(RopeTables(make_rope({"", Pairing::kHalves, 1024, 1024})), Error);
}

}  // namespace
}  // namespace kvcodec
