#include "kvcodec/plan/budget_plan.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

constexpr uint32_t kDim = 64;
constexpr uint32_t kHeads = 3;

// Variances that fall by the factor `decay` from one direction to the next.
SideArtifact side(double decay, float sensitivity) {
    SideArtifact side;
    side.dim = kDim;
    side.sensitivity = sensitivity;
    for (uint32_t head = 0; head < kHeads; ++head) {
        for (uint32_t i = 0; i < kDim; ++i) {
            side.variance.push_back(static_cast<float>(std::pow(decay, i)));
        }
    }
    return side;
}

Artifact artifact(std::initializer_list<std::pair<SideArtifact, SideArtifact>> layers) {
    Artifact artifact;
    for (const auto& [k, v] : layers) {
        artifact.layers.push_back({static_cast<uint32_t>(artifact.layers.size()), kHeads, {}, k, v});
    }
    return artifact;
}

double rate(const std::map<uint32_t, LayerPlan>& plan) {
    double bytes = 0;
    for (const auto& [layer, sides] : plan) {
        bytes += static_cast<double>(sides.k.code_bytes + sides.v.code_bytes);
    }
    return bytes / static_cast<double>(plan.size() * 2 * kDim * 2);
}

TEST(BudgetPlan, GivesFragileSidesMore) {
    const Artifact fragile =
        artifact({{side(0.9, 1), side(1, 1)}, {side(0.9, 1), side(1, 8)}, {side(0.9, 1), side(1, 1)}});
    for (const char* codec : {"codec=scalar", "codec=transform", ""}) {
        for (const double budget : {0.145, 0.22, 0.3}) {
            const auto plan = plan_budget(fragile, parse_options(codec), budget);
            ASSERT_EQ(plan.size(), 3U);
            EXPECT_LE(rate(plan), budget);
            EXPECT_GT(rate(plan), budget - 0.02) << codec << budget;
            EXPECT_GT(plan.at(1).v.code_bytes, plan.at(0).v.code_bytes) << codec << budget;
            EXPECT_GE(plan.at(1).v.code_bytes, plan.at(2).v.code_bytes) << codec << budget;
        }
    }
}

TEST(BudgetPlan, WithoutMeasurementsAllSidesCountAlike) {
    Artifact unmeasured = artifact({{side(0.9, 0), side(1, 5)}, {side(0.9, 1), side(1, 1)}});
    const auto plan = plan_budget(unmeasured, parse_options("codec=scalar"), 0.2);
    for (const auto& [layer, sides] : plan) {
        EXPECT_EQ(sides.k.scalar_bits, 3U);
        EXPECT_EQ(sides.v.scalar_bits, 3U);
    }
}

// Where noise loses more than the variance says, the scalar codec, whose error is noise, gives way to the transform.
TEST(BudgetPlan, LossOfNoiseCountsForTheScalarCodec) {
    SideArtifact v = side(0.99, 1);
    const auto taken = [&] {
        return plan_budget(artifact({{side(0.9, 1), v}}), parse_options("codec=transform"), 0.15);
    };
    const LayerPlan even = taken().at(0);
    ASSERT_TRUE(even.v.scalar_bits);
    v.loss_of_noise = 3.0F;
    const LayerPlan loud = taken().at(0);
    EXPECT_FALSE(loud.v.scalar_bits);
    v.loss_of_noise = 1.0F;
    EXPECT_EQ(taken().at(0).v.code_bytes, even.v.code_bytes);
}

TEST(BudgetPlan, AutoTakesTheTransformWhereThreeBitsDoNotFit) {
    const Artifact two = artifact({{side(0.9, 1), side(0.99, 1)}, {side(0.9, 1), side(0.99, 1)}});
    for (const auto& [layer, sides] : plan_budget(two, Options(), 0.20)) {
        EXPECT_TRUE(sides.k.scalar_bits && sides.v.scalar_bits);
    }
    for (const auto& [layer, sides] : plan_budget(two, Options(), 0.15)) {
        EXPECT_FALSE(sides.k.scalar_bits);
        EXPECT_TRUE(sides.v.scalar_bits);  // little concentrated: not worth the slower codec
    }
    for (const auto& [layer, sides] : plan_budget(two, Options(), 0.08)) {
        EXPECT_FALSE(sides.k.scalar_bits || sides.v.scalar_bits);
    }
    Artifact old = two;
    old.layers[1].k.variance.clear();
    EXPECT_TRUE(is_planned(old, Options(), 0.15));
    EXPECT_EQ(plan_budget(old, Options(), 0.134).at(0).k.scalar_bits, 2U);
    EXPECT_FALSE(is_planned(old, Options(), 0.08));  // left to the dictionary
    EXPECT_THROW(plan_budget(old, parse_options("codec=transform"), 0.15), Error);
}

TEST(BudgetPlan, BitsFixASide) {
    const Artifact two = artifact({{side(0.9, 1), side(0.9, 1)}, {side(0.9, 1), side(0.9, 9)}});
    for (const auto& [layer, sides] : plan_budget(two, parse_options("codec=scalar,bits_v=4"), 0.2)) {
        EXPECT_EQ(sides.v.scalar_bits, 4U);
        EXPECT_LE(*sides.k.scalar_bits, 3U);
    }
    for (const auto& [layer, sides] : plan_budget(two, parse_options("codec=transform,bits_k=2"), 0.2)) {
        EXPECT_FALSE(sides.k.scalar_bits);
        EXPECT_EQ(sides.k.code_bytes, kDim / 4 + 1);
    }
    for (const auto& [layer, sides] : plan_budget(two, parse_options("codec=transform,bits_v=8"), 0.35)) {
        EXPECT_EQ(sides.v.scalar_bits, 8U);
    }
    EXPECT_FALSE(is_planned(two, parse_options("bits=3"), 0.2));
    EXPECT_FALSE(is_planned(two, parse_options("s=8"), 0.2));
    EXPECT_FALSE(is_planned(two, parse_options("codec=dictionary"), 0.2));
    EXPECT_FALSE(is_planned(two, parse_options("codec=kivi"), 0.2));
}

TEST(BudgetPlan, BytesBecomeAShare) {
    const CacheSize cache{1000, 132, 50000};
    EXPECT_EQ(budget_share(Options(), cache), 0.2);
    EXPECT_EQ(budget_share(parse_options("budget=15%"), cache), 0.15);
    EXPECT_EQ(budget_share(parse_options("budget=250B"), cache), 0.25);
    EXPECT_EQ(budget_share(parse_options("budget=1MiB"), cache), 1.0);
    // All of it: dense tokens, what is fixed, and codes of all tokens.
    const double share = budget_share(parse_options("budget=400000B@1132"), cache);
    EXPECT_DOUBLE_EQ(132 * 1000.0 + 50000 + share * 1132 * 1000, 400000);
    EXPECT_THROW(budget_share(parse_options("budget=150000B@1132"), cache), Error);
}

TEST(BudgetPlan, PlansOnlyTheLayersAskedFor) {
    const Artifact three =
        artifact({{side(0.9, 1), side(1, 1)}, {side(0.9, 1), side(1, 1)}, {side(0.9, 1), side(1, 1)}});
    const auto plan = plan_budget(three, parse_options("layers=0+2"), 0.25);
    EXPECT_EQ(plan.size(), 2U);
    EXPECT_FALSE(plan.contains(1));
    EXPECT_LE(rate(plan), 0.25);
}

TEST(BudgetPlan, HeadsThatTheTransformCannotCodeStayScalar) {
    Artifact odd = artifact({{side(0.9, 1), side(0.9, 1)}});
    odd.layers[0].k.dim = 40;
    odd.layers[0].k.variance.resize(40 * kHeads);
    const auto plan = plan_budget(odd, parse_options("codec=transform"), 0.2);
    EXPECT_TRUE(plan.at(0).k.scalar_bits);
}

TEST(BudgetPlan, JointHeadsShareACode) {
    Artifact joint = artifact({{side(0.99, 1), side(0.99, 1)}});
    for (SideArtifact* of : {&joint.layers[0].k, &joint.layers[0].v}) {
        of->joint_heads = kHeads;
    }
    const LayerPlan plan = plan_budget(joint, parse_options("codec=transform,bits_k=2"), 0.15).at(0);
    EXPECT_EQ(plan.k.n_codes, 1U);
    EXPECT_EQ(plan.k.code_bytes, kHeads * kDim * 2 / 8 + 1);
    EXPECT_LE(plan.k.bytes() + plan.v.bytes(), static_cast<size_t>(0.15 * 2 * kHeads * kDim * 2));
    const LayerPlan scalar = plan_budget(joint, parse_options("codec=scalar"), 0.2).at(0);
    EXPECT_EQ(scalar.k.n_codes, kHeads);
    EXPECT_EQ(scalar.k.bytes(), kHeads * scalar.k.code_bytes);
    EXPECT_EQ(planned_fixed_bytes(joint, {{0, {{std::nullopt, 49, 1}, {3, 25, kHeads}}}}),
              kHeads * kDim * kHeads * kDim * (sizeof(int16_t) + sizeof(int8_t)));
}

TEST(BudgetPlan, LatentsGetTheMostBitsThatFit) {
    SideArtifact half;  // half of the full rank, all heads together
    half.dim = kDim;
    half.joint_heads = kHeads;
    half.rank = kDim * kHeads / 2;
    half.mean.assign(kDim * kHeads, 0.0F);
    half.directions.assign(size_t{half.rank} * kDim * kHeads, 0);
    Artifact latents = artifact({{half, half}, {half, half}});
    latents.kind = Artifact::Kind::kLatent;
    const auto bits = [&](const char* text, double budget) {
        const Options options = parse_options(text);
        EXPECT_TRUE(takes_latents(latents, options));
        const LatentBits found = latent_bits(latents, options, budget);
        return std::pair(found.k, found.v);
    };
    using Bits = std::pair<uint32_t, uint32_t>;
    EXPECT_EQ(bits("", 0.5), (Bits{16, 16}));
    EXPECT_EQ(bits("", 0.49), (Bits{8, 8}));
    EXPECT_EQ(bits("codec=latent", 0.13), (Bits{4, 4}));
    EXPECT_EQ(bits("", 0.07), (Bits{2, 2}));
    EXPECT_EQ(bits("bits_k=8", 0.2), (Bits{8, 4}));
    EXPECT_EQ(bits("bits=16", 0.1), (Bits{16, 16}));  // asked for, whatever the budget
    EXPECT_THROW(bits("", 0.06), Error);
    EXPECT_THROW(bits("bits_v=16", 0.2), Error);
    EXPECT_FALSE(takes_latents(latents, parse_options("codec=scalar")));
    EXPECT_FALSE(takes_latents(artifact({{side(1, 1), side(1, 1)}}), parse_options("")));

    const BudgetPlan plan = settle_budget(&latents, parse_options("budget=20%"), {4 * kDim * kHeads * 2, 0, 0});
    ASSERT_TRUE(plan.latents.has_value());
    EXPECT_EQ(plan.latents->v, 4U);
    EXPECT_TRUE(plan.layers.empty());
    EXPECT_EQ(planned_fixed_bytes(latents, {}), 4 * (half.mean.size() + half.directions.size()) * sizeof(float));
}

}  // namespace
}  // namespace kvcodec
