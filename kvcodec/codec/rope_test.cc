#include "kvcodec/codec/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

using Pairing = RopeParams::Pairing;

struct Case {
    std::string name;
    RopeParams params;
    size_t head_dim;
};

RopeParams plain(Pairing pairing, uint32_t n_dims, float freq_base = 10000.0F) {
    RopeParams p;
    p.pairing = pairing;
    p.n_dims = n_dims;
    p.n_ctx_orig = 4096;
    p.freq_base = freq_base;
    return p;
}

RopeParams yarn(Pairing pairing, uint32_t n_dims) {
    RopeParams p = plain(pairing, n_dims, 1e6F);
    p.n_ctx_orig = 32768;
    p.freq_scale = 0.25F;
    p.ext_factor = 1.0F;
    p.attn_factor = 0.9F;
    return p;
}

RopeParams with_factors(RopeParams p) {
    for (uint32_t i = 0; i < p.n_dims / 2; ++i) {
        p.freq_factors.push_back(1.0F + 0.2F * static_cast<float>(i));
    }
    return p;
}

std::vector<Case> cases() {
    RopeParams linear = plain(Pairing::kHalves, 64);
    linear.freq_scale = 0.5F;
    linear.attn_factor = 1.25F;
    RopeParams half_yarn = yarn(Pairing::kAdjacent, 64);
    half_yarn.ext_factor = 0.5F;
    return {
        {"None", plain(Pairing::kNone, 0), 64},
        {"Adjacent", plain(Pairing::kAdjacent, 64), 64},
        {"Halves", plain(Pairing::kHalves, 128, 1e6F), 128},
        {"AdjacentPartial", plain(Pairing::kAdjacent, 32), 80},
        {"HalvesPartial", plain(Pairing::kHalves, 20), 80},
        {"LinearScale", linear, 64},
        {"Factors", with_factors(plain(Pairing::kHalves, 64, 5e5F)), 64},
        {"YarnAdjacent", half_yarn, 64},
        {"YarnHalves", yarn(Pairing::kHalves, 128), 128},
        {"YarnFactorsPartial", with_factors(yarn(Pairing::kHalves, 64)), 96},
    };
}

/// ggml's ROPE, operation by operation in float.
std::vector<float> ggml_rope(const RopeParams& p, std::vector<float> x, int64_t t) {
    if (p.pairing == Pairing::kNone) {
        return x;
    }
    const auto n_dims = static_cast<float>(p.n_dims);
    const auto n_ctx = static_cast<float>(p.n_ctx_orig);
    const auto correction = [&](float beta) {
        return n_dims * logf(n_ctx / (beta * 2 * static_cast<float>(M_PI))) / (2 * logf(p.freq_base));
    };
    const float low = std::fmax(0.0F, floorf(correction(p.beta_fast)));
    const float high = std::fmin(n_dims - 1, ceilf(correction(p.beta_slow)));
    const float theta_scale = powf(p.freq_base, -2.0F / n_dims);
    auto theta_base = static_cast<float>(t);
    for (uint32_t i = 0; i < p.n_dims / 2; ++i) {
        const float extrapolated = theta_base / (p.freq_factors.empty() ? 1.0F : p.freq_factors[i]);
        float theta = p.freq_scale * extrapolated;
        float magnitude = p.attn_factor;
        if (p.ext_factor != 0.0F) {
            const float y = (static_cast<float>(i) - low) / std::fmax(0.001F, high - low);
            const float mix = (1 - std::fmin(1.0F, std::fmax(0.0F, y))) * p.ext_factor;
            theta = theta * (1 - mix) + extrapolated * mix;
            magnitude *= 1.0F + 0.1F * logf(1.0F / p.freq_scale);
        }
        const bool adjacent = p.pairing == Pairing::kAdjacent;
        float& first = x[adjacent ? 2 * i : i];
        float& second = x[adjacent ? 2 * i + 1 : i + p.n_dims / 2];
        const float c = cosf(theta) * magnitude;
        const float s = sinf(theta) * magnitude;
        const float x0 = first;
        const float x1 = second;
        first = x0 * c - x1 * s;
        second = x0 * s + x1 * c;
        theta_base *= theta_scale;
    }
    return x;
}

std::vector<float> random_vector(size_t n) {
    static std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_NEAR(a[i], b[i], tolerance) << "element " << i;
    }
}

class RopeTest : public testing::TestWithParam<Case> {};

TEST_P(RopeTest, RotatesLikeGgml) {
    const Rope rope(GetParam().params, GetParam().head_dim);
    for (const int64_t t : {0, 1, 17, 511, 4095, 32768, 131071, -5}) {
        SCOPED_TRACE(t);
        const std::vector<float> x = random_vector(GetParam().head_dim);
        std::vector<float> y = x;
        rope.rotate(y.data(), t);
        // ggml's float angles carry a few roundings, each relative to the angle itself.
        expect_near(y, ggml_rope(GetParam().params, x, t), 1e-5 + 1.5e-7 * static_cast<double>(std::abs(t)));
    }
}

TEST_P(RopeTest, UnrotateInverts) {
    const Rope rope(GetParam().params, GetParam().head_dim);
    for (const int64_t t : {0, 3, 131072, -77}) {
        const std::vector<float> x = random_vector(GetParam().head_dim);
        std::vector<float> y = x;
        rope.rotate(y.data(), t);
        rope.unrotate(y.data(), t);
        expect_near(y, x, 2e-6);
    }
}

TEST_P(RopeTest, ShiftMovesRotatedKeys) {
    const Rope rope(GetParam().params, GetParam().head_dim);
    const std::vector<float> x = random_vector(GetParam().head_dim);
    std::vector<float> moved = x;
    rope.rotate(moved.data(), 70000);
    rope.shift(moved.data(), -69000);
    std::vector<float> direct = x;
    rope.rotate(direct.data(), 1000);
    expect_near(moved, direct, 3e-6);
}

INSTANTIATE_TEST_SUITE_P(Modes, RopeTest, testing::ValuesIn(cases()), [](const auto& test) { return test.param.name; });

// q . R_t k = R_-t q . k, magnitude included: how readers of keys before RoPE are found.
TEST_P(RopeTest, TheOppositeRotationIsTheTransposedOne) {
    const Rope rope(GetParam().params, GetParam().head_dim);
    std::mt19937 random(4);
    std::normal_distribution<float> normal;
    for (const int64_t t : {0, 1, 77, 5000}) {
        std::vector<float> q(GetParam().head_dim), k(GetParam().head_dim);
        std::ranges::generate(q, [&] { return normal(random); });
        std::ranges::generate(k, [&] { return normal(random); });
        std::vector<float> rotated_k = k, turned_q = q;
        rope.rotate(rotated_k.data(), t);
        rope.rotate(turned_q.data(), -t);
        const double expected = std::inner_product(q.begin(), q.end(), rotated_k.begin(), 0.0);
        EXPECT_NEAR(std::inner_product(turned_q.begin(), turned_q.end(), k.begin(), 0.0), expected, 1e-3);
    }
}

TEST(RopeErrors, RefusesWhatDoesNotFit) {
    EXPECT_THROW(Rope(plain(Pairing::kHalves, 128), 64), Error);
    EXPECT_THROW(Rope(plain(Pairing::kHalves, 7), 64), Error);
    EXPECT_THROW(Rope(plain(Pairing::kAdjacent, 0), 64), Error);
    RopeParams short_factors = plain(Pairing::kHalves, 64);
    short_factors.freq_factors = {1.0F};
    EXPECT_THROW(Rope(short_factors, 64), Error);
    RopeParams zero_factor = with_factors(plain(Pairing::kHalves, 64));
    zero_factor.freq_factors[3] = 0.0F;
    EXPECT_THROW(Rope(zero_factor, 64), Error);
    RopeParams no_magnitude = plain(Pairing::kHalves, 64);
    no_magnitude.attn_factor = 0.0F;
    EXPECT_THROW(Rope(no_magnitude, 64), Error);
}

}  // namespace
}  // namespace kvcodec
