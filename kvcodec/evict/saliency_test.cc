#include "kvcodec/evict/saliency.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "kvcodec/codec/baseline/zipcache_codec.h"
#include "kvcodec/evict/attention_mass.h"
#include "kvcodec/half.h"

namespace kvcodec {
namespace {

constexpr uint16_t kHidden = 0xFC00;
constexpr size_t kDim = 64;
constexpr size_t kHeads = 2;  // KV heads
constexpr size_t kGroup = 3;  // query heads of each
constexpr size_t kCells = 128;
constexpr size_t kTokens = 100;

TEST(ProbeTokens, AreRecentAndRandom) {
    std::mt19937 rng(1);
    for (const size_t n_tokens : {1, 2, 19, 20, 39, 40, 400, 512}) {
        const std::vector<size_t> tokens = probe_tokens(n_tokens, rng);
        const size_t n_recent = std::max<size_t>(1, n_tokens / 20);
        EXPECT_EQ(tokens.size(), n_recent + n_tokens / 20);
        for (size_t i = 0; i < n_recent; ++i) {
            EXPECT_EQ(tokens[i], n_tokens - n_recent + i);
        }
        EXPECT_LT(*std::max_element(tokens.begin(), tokens.end()), n_tokens);
        EXPECT_EQ(std::set(tokens.begin(), tokens.end()).size(), tokens.size());
    }
}

class SaliencyTest : public testing::Test {
  protected:
    SaliencyTest() : store_(kCells, kHeads * kDim, kHeads * kDim, true), q_(kHeads * kGroup * kTokens * kDim) {
        std::normal_distribution<float> normal;
        std::ranges::generate(q_, [&] { return normal(rng_); });
        store_.set_codecs(
            {kCells, kHeads, kDim, kDim},
            {std::make_shared<ZipCacheKeyCodec>(kDim), std::make_shared<ZipCacheValueCodec>(kDim), {}, {}, {}});
        std::vector<float> row(kHeads * kDim);
        for (size_t cell = 0; cell < kCells; ++cell) {
            for (const Side side : {Side::kK, Side::kV}) {
                std::ranges::generate(row, [&] { return normal(rng_); });
                store_.write(side, cell, row.data());
            }
        }
        // The tokens are the last of the cells.
        mask_.assign(kTokens * kCells, kHidden);
        for (size_t token = 0; token < kTokens; ++token) {
            std::fill_n(&mask_[token * kCells], kCells - kTokens + token + 1, uint16_t{0});
        }
        call_.q = q_.data();
        call_.q_token_stride = kDim;
        call_.q_head_stride = kTokens * kDim;
        call_.n_tokens = kTokens;
        call_.n_head = kHeads * kGroup;
        call_.n_cells = kCells;
        call_.mask = mask_.data();
        call_.mask_stride = kCells;
        call_.scale = 0.125F;
        cells_.resize(kCells);
        std::iota(cells_.begin(), cells_.end(), 0U);
    }
    // Salient rows of one head.
    static size_t count(const std::vector<uint8_t>& salient, size_t head) {
        const size_t n = salient.size() / kHeads;
        return static_cast<size_t>(std::accumulate(&salient[head * n], &salient[head * n] + n, 0));
    }

    std::mt19937 rng_{2};
    LayerStore store_;
    std::vector<float> q_;
    std::vector<uint16_t> mask_;
    AttentionCall call_;
    std::vector<uint32_t> cells_;
    SingleThread team_;
};

TEST_F(SaliencyTest, IsTheMeanOverProbesThatSeeTheKey) {
    const std::vector<size_t> tokens = {99, 3, 57, 60};
    const std::vector<float> received = normalized_attention(store_, call_, tokens, team_);
    std::vector<double> expected(kHeads * kCells);
    for (const size_t token : tokens) {
        AttentionCall one = call_;
        one.q += token * kDim;
        one.mask += token * kCells;
        one.n_tokens = 1;
        std::vector<float> mass(kHeads * kCells);
        add_attention_mass(store_, one, 0, mass.data(), kCells, team_);
        std::transform(mass.begin(), mass.end(), expected.begin(), expected.begin(), std::plus<>());
    }
    for (size_t i = 0; i < expected.size(); ++i) {
        const auto seeing = std::count_if(tokens.begin(), tokens.end(),
                                          [&](size_t token) { return i % kCells <= kCells - kTokens + token; });
        ASSERT_NEAR(received[i], expected[i] / static_cast<double>(seeing), 1e-5);
    }
}

TEST_F(SaliencyTest, KeysThatNoProbeSeesCountAsZero) {
    const std::vector<float> received = normalized_attention(store_, call_, std::vector<size_t>{10}, team_);
    for (size_t i = 0; i < received.size(); ++i) {
        ASSERT_EQ(received[i] > 0, i % kCells <= kCells - kTokens + 10) << i;
    }
    call_.mask = nullptr;
    for (const float r : normalized_attention(store_, call_, std::vector<size_t>{10}, team_)) {
        ASSERT_GT(r, 0);
    }
}

TEST_F(SaliencyTest, TheMostSalientRowsOfEachHeadAreChosen) {
    call_.n_tokens = 1;  // one probe, whatever the seed
    call_.mask = nullptr;
    const std::vector<float> received = normalized_attention(store_, call_, std::vector<size_t>{0}, team_);
    const std::vector<uint8_t> salient = SalientRows(0.25).choose(store_, {&call_, 1}, cells_, team_);
    for (size_t head = 0; head < kHeads; ++head) {
        EXPECT_EQ(count(salient, head), kCells / 4);
        float least = INFINITY;
        float most = 0;
        for (size_t i = head * kCells; i < (head + 1) * kCells; ++i) {
            (salient[i] != 0 ? least : most) =
                salient[i] != 0 ? std::min(least, received[i]) : std::max(most, received[i]);
        }
        EXPECT_GE(least, most);
    }
}

TEST_F(SaliencyTest, ShareHoldsOverManyChoices) {
    for (const double share : {0.0, 0.1, 0.5, 0.6, 1.0}) {
        SalientRows rows(share);
        size_t n_salient = 0;
        size_t n = 0;
        for (const size_t part : {32, 32, 96, 64, 128, 32, 32}) {
            const std::vector<uint8_t> salient = rows.choose(store_, {&call_, 1}, std::span(cells_).first(part), team_);
            ASSERT_EQ(count(salient, 0), count(salient, 1));
            n_salient += count(salient, 0);
            n += part;
            EXPECT_LE(static_cast<double>(n_salient), share * static_cast<double>(n) + 1e-6);
            EXPECT_GT(static_cast<double>(n_salient), share * static_cast<double>(n) - 1);
        }
    }
}

TEST_F(SaliencyTest, CellsOfNoCallAreLeastSalient) {
    AttentionCall half = call_;
    half.first_cell = kCells / 2;
    half.n_cells = kCells / 2;
    half.mask = nullptr;
    const std::vector<uint8_t> salient = SalientRows(0.5).choose(store_, {&half, 1}, cells_, team_);
    for (size_t i = 0; i < salient.size(); ++i) {
        ASSERT_EQ(salient[i] != 0, i % kCells >= kCells / 2);
    }
}

TEST_F(SaliencyTest, StoreCodesAndCountsThem) {
    EXPECT_FALSE(store_.salient_share());
    SalientRows rows(0.25);
    const std::vector<uint8_t> salient = rows.choose(store_, {&call_, 1}, cells_, team_);
    const std::vector<Distortion> expected = store_.distortion(Side::kK, cells_, nullptr, salient.data());
    std::vector<std::vector<uint16_t>> before(kCells, std::vector<uint16_t>(kHeads * kDim));
    for (size_t cell = 0; cell < kCells; ++cell) {
        store_.read(Side::kK, cell, nullptr, before[cell].data());
    }
    const std::unique_ptr<Team> team = make_parked_team(3);
    store_.encode(cells_, nullptr, *team, salient.data());
    EXPECT_DOUBLE_EQ(store_.salient_share().value(), 0.25);
    EXPECT_DOUBLE_EQ(store_.used_bytes_per_token(0.0), kHeads * (193 + 193) / 8.0);
    EXPECT_DOUBLE_EQ(store_.used_bytes_per_token(0.25), kHeads * (193 + 193 + 0.25 * 256) / 8.0);
    double error[2] = {};
    size_t n[2] = {};
    for (size_t cell = 0; cell < kCells; ++cell) {
        std::vector<uint16_t> row(kHeads * kDim);
        store_.read(Side::kK, cell, nullptr, row.data());
        double miss = 0;
        for (size_t i = 0; i < row.size(); ++i) {
            const size_t mark = salient[i / kDim * kCells + cell];
            const double square = std::pow(half_to_float(row[i]) - half_to_float(before[cell][i]), 2);
            error[mark] += square;
            miss += square;
            ++n[mark];
        }
        EXPECT_NEAR(miss, expected[cell].miss, 0.01 * expected[cell].miss);  // read() rounds to half precision
    }
    EXPECT_LT(error[1] / static_cast<double>(n[1]), error[0] / static_cast<double>(n[0]) / 15);
    // A copied cell keeps its mark, a cell written anew is not counted any more.
    for (uint32_t i = 0; i < 32; ++i) {
        store_.copy_cell(i, 32 + i);
    }
    size_t n_salient = 0;
    for (size_t i = 0; i < salient.size(); ++i) {
        n_salient += salient[i % kCells / 32 == 1 ? i - 32 : i];
    }
    EXPECT_DOUBLE_EQ(store_.salient_share().value(), static_cast<double>(n_salient) / (kHeads * kCells));
    store_.clear();
    EXPECT_FALSE(store_.salient_share());
}

}  // namespace
}  // namespace kvcodec
