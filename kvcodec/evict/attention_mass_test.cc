#include "kvcodec/evict/attention_mass.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvcodec/half.h"
#include "kvcodec/test_targets.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;
constexpr uint16_t kHalfHidden = 0xFC00;

std::vector<float> random_vector(size_t n, std::mt19937& rng, float deviation = 1.0F) {
    std::normal_distribution<float> normal(0.0F, deviation);
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

class AttentionMassTest : public testing::TestWithParam<unsigned> {
  protected:
    void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

/// The same in double, one probability after the other: [n_head_kv, n_cells].
std::vector<double> reference(const LayerStore& store, const AttentionCall& c, size_t first_token) {
    const LayerGeometry& g = store.geometry();
    const size_t group = c.n_head / g.n_head_kv;
    std::vector<double> mass(g.n_head_kv * c.n_cells);
    for (size_t head = 0; head < c.n_head; ++head) {
        for (size_t token = first_token; token < c.n_tokens; ++token) {
            const float* q = c.q + head * c.q_head_stride + token * c.q_token_stride;
            std::vector<double> s(c.n_cells);
            double sum = c.sinks == nullptr ? 0.0 : std::exp(double{c.sinks[head]});
            for (size_t cell = 0; cell < c.n_cells; ++cell) {
                const auto row = static_cast<uint16_t>(cell % kBlock);
                std::vector<float> k(g.dim_k);
                store.gather(Side::kK, (c.first_cell + cell) / kBlock, head / group, {&row, 1}, c.positions, k.data());
                s[cell] = c.scale * std::inner_product(q, q + g.dim_k, k.data(), 0.0);
                if (c.softcap != 0) {
                    s[cell] = c.softcap * std::tanh(s[cell] / c.softcap);
                }
                if (c.mask != nullptr) {
                    const double bias = half_to_float(c.mask[token * c.mask_stride + cell]);
                    s[cell] += (c.slopes == nullptr ? 1.0 : double{c.slopes[head]}) * bias;
                }
                s[cell] = store.is_evicted(c.first_cell + cell, head / group) ? 0.0 : std::exp(s[cell]);
                sum += s[cell];
            }
            for (size_t cell = 0; cell < c.n_cells && sum > 0; ++cell) {
                mass[head / group * c.n_cells + cell] += s[cell] / sum;
            }
        }
    }
    return mass;
}

TEST_P(AttentionMassTest, AgreesWithDouble) {
    constexpr size_t kDims[] = {64, 80, 128};
    std::mt19937 rng(GetParam());
    const size_t dim = kDims[GetParam() % 3];
    const size_t n_head_kv = 1 + rng() % 3;
    const size_t group = 1 + rng() % 8;
    const size_t n_tokens = rng() % 2 == 0 ? 1 + rng() % 4 : 1 + rng() % 150;
    const size_t n_cells = 1 + rng() % 300;
    const size_t first_token = rng() % n_tokens;
    const size_t first_cell = rng() % 2 * kBlock;
    SCOPED_TRACE("dim " + std::to_string(dim) + ", heads " + std::to_string(n_head_kv) + "x" + std::to_string(group) +
                 ", tokens " + std::to_string(first_token) + " to " + std::to_string(n_tokens) + ", cells " +
                 std::to_string(n_cells));
    LayerStore store((first_cell + n_cells + kBlock) / kBlock * kBlock, n_head_kv * dim, n_head_kv * dim, true);
    store.set_codecs({(first_cell + n_cells + kBlock) / kBlock * kBlock, n_head_kv, dim, dim}, {});
    const bool evicts = rng() % 2 == 0;
    for (size_t cell = first_cell; cell < first_cell + n_cells; ++cell) {
        store.write(Side::kK, cell, random_vector(n_head_kv * dim, rng).data());
        store.write(Side::kV, cell, random_vector(n_head_kv * dim, rng).data());
        for (size_t head = 0; evicts && head < n_head_kv; ++head) {
            if (rng() % 3 == 0) {
                store.evict(cell, head);
            }
        }
    }
    const std::vector<float> q = random_vector(n_head_kv * group * (n_tokens * (dim + 3) + 5), rng);
    std::vector<float> slopes = random_vector(n_head_kv * group, rng, 0.1F);
    std::transform(slopes.begin(), slopes.end(), slopes.begin(), [](float slope) { return std::abs(slope); });
    const std::vector<float> sinks = random_vector(n_head_kv * group, rng, 3.0F);
    std::vector<uint16_t> mask(n_tokens * (n_cells + 7));
    const bool causal = rng() % 2 == 0;
    for (size_t token = 0; token < n_tokens; ++token) {
        for (size_t cell = 0; cell < n_cells; ++cell) {
            const bool hidden =
                causal ? cell + n_tokens > n_cells + token : rng() % 3 == 0 || token % 5 == 1 || cell / kBlock == 1;
            mask[token * (n_cells + 7) + cell] = hidden   ? kHalfHidden
                                                 : causal ? uint16_t{0}
                                                          : float_to_half(static_cast<float>(rng() % 8) * 0.5F);
        }
    }
    AttentionCall call;
    call.q = q.data();
    call.q_token_stride = dim + 3;
    call.q_head_stride = n_tokens * (dim + 3) + 5;
    call.n_tokens = n_tokens;
    call.n_head = n_head_kv * group;
    call.first_cell = first_cell;
    call.n_cells = n_cells;
    call.mask = rng() % 4 == 0 ? nullptr : mask.data();
    call.mask_stride = n_cells + 7;
    call.scale = 1.5F / std::sqrt(static_cast<float>(dim));
    call.softcap = rng() % 3 == 0 ? 2.0F : 0.0F;
    call.slopes = rng() % 3 == 0 ? slopes.data() : nullptr;
    call.sinks = rng() % 3 == 0 ? sinks.data() : nullptr;

    const std::vector<double> expected = reference(store, call, first_token);
    const size_t stride = n_cells + 11;
    constexpr float kBefore = 0.25F;  // mass is added to what is there
    const auto check = [&](size_t team_size) {
        const std::unique_ptr<Team> team = make_parked_team(team_size);
        std::vector<float> mass(n_head_kv * stride, kBefore);
        add_attention_mass(store, call, first_token, mass.data(), stride, *team);
        for (size_t head = 0; head < n_head_kv; ++head) {
            for (size_t cell = 0; cell < stride; ++cell) {
                const double added = cell < n_cells ? expected[head * n_cells + cell] : 0.0;
                ASSERT_NEAR(mass[head * stride + cell], kBefore + added, 2e-5 + 2e-5 * added)
                    << "head " << head << " cell " << cell << " team " << team_size;
            }
        }
    };
    for (const int64_t target : test_targets()) {
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        check(1);
    }
    hwy::SetSupportedTargetsForTest(0);
    check(2);
    check(5);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AttentionMassTest, testing::Range(0U, 40U));

TEST(AttentionMass, BatchesAddUpToTheWhole) {
    constexpr size_t kTokens = 100;
    constexpr size_t kDim = 64;
    std::mt19937 rng(3);
    LayerStore store(2 * kBlock, kDim, kDim, true);
    store.set_codecs({2 * kBlock, 1, kDim, kDim}, {});
    std::vector<uint16_t> mask(kTokens * kTokens, kHalfHidden);
    for (size_t token = 0; token < kTokens; ++token) {
        store.write(Side::kK, token, random_vector(kDim, rng).data());
        store.write(Side::kV, token, random_vector(kDim, rng).data());
        std::fill_n(&mask[token * kTokens], token + 1, uint16_t{0});
    }
    const std::vector<float> q = random_vector(2 * kTokens * kDim, rng);
    SingleThread team;
    const auto add = [&](size_t begin, size_t end, std::vector<float>& mass) {
        AttentionCall call;
        call.q = q.data() + begin * kDim;
        call.q_token_stride = kDim;
        call.q_head_stride = kTokens * kDim;
        call.n_tokens = end - begin;
        call.n_head = 2;
        call.n_cells = end;
        call.mask = mask.data() + begin * kTokens;
        call.mask_stride = kTokens;
        call.scale = 0.125F;
        add_attention_mass(store, call, 0, mass.data(), kTokens, team);
    };
    std::vector<float> whole(kTokens);
    std::vector<float> parts(kTokens);
    add(0, kTokens, whole);
    for (const auto& [begin, end] : {std::pair<size_t, size_t>{0, 33}, {33, 34}, {34, 98}, {98, kTokens}}) {
        add(begin, end, parts);
    }
    for (size_t cell = 0; cell < kTokens; ++cell) {
        EXPECT_NEAR(parts[cell], whole[cell], 1e-4) << cell;
    }
    // Every query gives 1 in all.
    EXPECT_NEAR(std::accumulate(whole.begin(), whole.end(), 0.0), 2.0 * kTokens, 1e-3);
}

}  // namespace
}  // namespace kvcodec
