#include "kvcodec/evict/evictor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "kvcodec/evict/attention_mass.h"
#include "kvcodec/evict/eviction_policy.h"

namespace kvcodec {
namespace {

constexpr size_t kBlock = LayerStore::kBlock;
constexpr uint16_t kHalfHidden = 0xFC00;
constexpr LayerGeometry kGeometry{8 * kBlock, 2, 64, 64};
constexpr size_t kRow = kGeometry.n_head_kv * kGeometry.dim_k;
constexpr size_t kGroup = 3;
constexpr size_t kStream = 4 * kBlock;  // cells of one stream

using Method = EvictionSettings::Method;

/// One sequence that is read batch by batch into a stream of a store. Cells are not in the order of positions.
class Reader {
  public:
    Reader(const EvictionSettings& settings, size_t first_cell = 0)
        : first_cell_(first_cell), evictor(settings, kGeometry) {
        store.set_codecs(kGeometry, {});
        order_.resize(kStream);
        std::iota(order_.begin(), order_.end(), first_cell);
        std::shuffle(order_.begin(), order_.end(), rng_);
    }

    /// Returns how many cells were decided on.
    size_t read(size_t n_tokens) {
        mask_.assign(n_tokens * kStream, kHalfHidden);
        q_.resize(n_tokens * kGeometry.n_head_kv * kGroup * kGeometry.dim_k);
        std::generate(q_.begin(), q_.end(), [&] { return normal_(rng_); });
        for (size_t token = 0; token < n_tokens; ++token, ++n_read) {
            const size_t cell = order_[n_read];
            write(cell);
            positions[cell] = static_cast<int32_t>(n_read);
            for (size_t t = token; t < n_tokens; ++t) {
                mask_[t * kStream + cell - first_cell_] = 0;
            }
        }
        for (size_t seen = 0; seen < n_read - n_tokens; ++seen) {
            for (size_t t = 0; t < n_tokens; ++t) {
                mask_[t * kStream + order_[seen] - first_cell_] = 0;
            }
        }
        return evictor.observe(store, call(n_tokens), team_).size();
    }

    AttentionCall call(size_t n_tokens) const {
        AttentionCall call;
        call.q = q_.data();
        call.q_token_stride = kGeometry.dim_k;
        call.q_head_stride = n_tokens * kGeometry.dim_k;
        call.n_tokens = n_tokens;
        call.n_head = kGeometry.n_head_kv * kGroup;
        call.first_cell = first_cell_;
        call.n_cells = kStream;
        call.mask = mask_.data();
        call.mask_stride = kStream;
        call.scale = 0.3F;
        call.positions = positions.data();
        return call;
    }

    /// Positions whose row a head still has, ascending.
    std::vector<size_t> kept(size_t head) const {
        std::vector<size_t> found;
        for (size_t position = 0; position < n_read; ++position) {
            if (!store.is_evicted(order_[position], head)) {
                found.push_back(position);
            }
        }
        return found;
    }

    size_t cell(size_t position) const { return order_[position]; }

    void write(size_t cell) {
        std::vector<float> x(kRow);
        for (const Side side : {Side::kK, Side::kV}) {
            std::generate(x.begin(), x.end(), [&] { return normal_(rng_); });
            store.write(side, cell, x.data());
        }
    }

  private:
    std::mt19937 rng_{11};
    std::normal_distribution<float> normal_;
    SingleThread team_;
    size_t first_cell_;
    std::vector<size_t> order_;
    std::vector<float> q_;
    std::vector<uint16_t> mask_;

  public:
    LayerStore store{kGeometry.n_cells, kRow, kRow, true};
    Evictor evictor;
    std::vector<int32_t> positions = std::vector<int32_t>(kGeometry.n_cells, -1);
    size_t n_read = 0;
};

EvictionSettings settings_of(Method method, double budget) {
    EvictionSettings settings;
    settings.method = method;
    settings.budget = budget;
    return settings;
}

TEST(EvictorTest, KeepsTheBudgetAfterEveryBatch) {
    for (const Method method : {Method::kH2o, Method::kSnapKv}) {
        Reader reader(settings_of(method, 0.6), 4 * kBlock);
        for (const size_t n_tokens : {64, 40, 96}) {
            std::vector<size_t> before = reader.kept(1);
            for (size_t i = 0; i < n_tokens; ++i) {
                before.push_back(reader.n_read + i);
            }
            EXPECT_EQ(reader.read(n_tokens), reader.n_read);
            const size_t capacity = capacity_of(0.6, reader.n_read);
            for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
                EXPECT_EQ(reader.kept(head).size(), capacity);
            }
            const std::vector<size_t> after = reader.kept(1);
            EXPECT_TRUE(std::includes(before.begin(), before.end(), after.begin(), after.end())) << "rows came back";
            const Evictor::Rows rows = reader.evictor.rows(reader.store);
            EXPECT_EQ(rows.decided, reader.n_read * kGeometry.n_head_kv);
            EXPECT_EQ(rows.kept, capacity * kGeometry.n_head_kv);
            EXPECT_EQ(reader.store.dense_rows() + reader.store.emptied_cells(), reader.n_read);
        }
        EXPECT_NE(reader.kept(0), reader.kept(1));
        EXPECT_GT(reader.store.emptied_cells(), 0U);
    }
}

TEST(EvictorTest, AWholeBudgetEvictsNothing) {
    for (const Method method : {Method::kH2o, Method::kSnapKv, Method::kPyramidKv}) {
        Reader reader(settings_of(method, 1.0));
        EXPECT_EQ(reader.read(100), 100U);
        EXPECT_EQ(reader.store.dense_rows(), 100U);
        EXPECT_EQ(reader.kept(0).size(), 100U);
    }
}

// The policies are tested alone; here, that they are given the right mass in the right order.
TEST(EvictorTest, SelectsByWhatTheQueriesGave) {
    constexpr size_t kTokens = 100;
    constexpr size_t kCapacity = 40;
    for (const Method method : {Method::kH2o, Method::kSnapKv}) {
        Reader reader(settings_of(method, 0.4));
        const size_t first_token = method == Method::kH2o ? 0 : kTokens - Evictor::kObservationWindow;
        reader.read(kTokens);
        Reader untouched(settings_of(method, 1.0));  // the same random numbers
        untouched.read(kTokens);
        std::vector<float> mass(kGeometry.n_head_kv * kStream);
        SingleThread team;
        add_attention_mass(untouched.store, untouched.call(kTokens), first_token, mass.data(), kStream, team);
        for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
            std::vector<float> by_position;
            for (size_t position = 0; position < kTokens; ++position) {
                by_position.push_back(mass[head * kStream + untouched.cell(position)]);
            }
            const std::vector<uint8_t> kept(kTokens, 1);
            const std::vector<uint32_t> evicted =
                method == Method::kH2o ? evicted_by_h2o({by_position, kept}, kCapacity)
                                       : evicted_by_snapkv({by_position, kept}, Evictor::kObservationWindow, kCapacity);
            EXPECT_EQ(evicted.size(), kTokens - kCapacity);
            for (const uint32_t position : evicted) {
                EXPECT_TRUE(reader.store.is_evicted(reader.cell(position), head)) << position;
            }
        }
    }
}

TEST(EvictorTest, H2oDecidesEverySixteenSteps) {
    Reader reader(settings_of(Method::kH2o, 0.25));
    EXPECT_EQ(reader.read(80), 80U);
    EXPECT_EQ(reader.kept(0).size(), 20U);
    for (size_t step = 1; step < 16; ++step) {
        EXPECT_EQ(reader.read(1), 0U);
        EXPECT_EQ(reader.kept(0).size(), 20U + step);
    }
    EXPECT_EQ(reader.read(1), 96U);
    EXPECT_EQ(reader.kept(0).size(), 24U);
}

TEST(EvictorTest, SnapKvLeavesGeneratedTokensAlone) {
    Reader reader(settings_of(Method::kSnapKv, 0.5));
    EXPECT_EQ(reader.read(80), 80U);
    for (size_t step = 0; step < 40; ++step) {
        EXPECT_EQ(reader.read(1), 0U);
    }
    EXPECT_EQ(reader.read(31), 0U);
    EXPECT_EQ(reader.kept(0).size(), 40U + 71);
    EXPECT_EQ(reader.evictor.rows(reader.store).decided, 80 * kGeometry.n_head_kv);
    EXPECT_EQ(reader.read(32), 183U);
    EXPECT_EQ(reader.kept(0).size(), 92U);
    EXPECT_EQ(reader.kept(0)[60], 151U) << "the last 32 are the observation window";
}

TEST(EvictorTest, SinksStayIfAskedFor) {
    for (const Method method : {Method::kH2o, Method::kSnapKv}) {
        EvictionSettings settings = settings_of(method, 0.4);
        settings.sinks = 8;
        Reader reader(settings);
        reader.read(100);
        for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
            const std::vector<size_t> kept = reader.kept(head);
            EXPECT_EQ(kept.size(), 40U);
            EXPECT_EQ(kept[7], 7U);
        }
    }
}

TEST(EvictorTest, PyramidLayersKeepTheBudgetTogether) {
    constexpr size_t kLayers = 5;
    Evictor::Rows sum;
    size_t before = kStream;
    for (size_t layer = 0; layer < kLayers; ++layer) {
        EvictionSettings settings = settings_of(Method::kPyramidKv, 0.4);
        settings.layer = layer;
        settings.n_layers = kLayers;
        Reader reader(settings);
        reader.read(200);
        const Evictor::Rows rows = reader.evictor.rows(reader.store);
        EXPECT_LT(rows.kept / kGeometry.n_head_kv, before);
        before = rows.kept / kGeometry.n_head_kv;
        sum.kept += rows.kept;
        sum.decided += rows.decided;
    }
    EXPECT_EQ(sum.kept * 10, sum.decided * 4);
}

TEST(EvictorTest, OverwrittenCellsStartAnew) {
    Reader reader(settings_of(Method::kH2o, 0.2));
    reader.read(100);
    const size_t cell = reader.cell(0);
    reader.evictor.copy_cell(reader.cell(50), 300);
    EXPECT_EQ(reader.evictor.rows(reader.store).decided, 101 * kGeometry.n_head_kv);
    reader.write(cell);
    reader.evictor.forget(cell);
    EXPECT_EQ(reader.evictor.rows(reader.store).decided, 100 * kGeometry.n_head_kv);
    reader.store.clear();
    reader.evictor.clear();
    EXPECT_EQ(reader.evictor.rows(reader.store).decided, 0U);
    // Sums (4 bytes) and decisions (1 byte).
    EXPECT_GE(reader.evictor.resident_bytes(), kGeometry.n_cells * (4 * kGeometry.n_head_kv + 1));
    EXPECT_EQ(reader.evictor.describe(), "h2o, 20 % of rows kept");
}

// A restored state has no positions for cells that had lost every head.
TEST(EvictorTest, EmptiedCellsWithoutPositionOnlyCount) {
    EvictionSettings settings = settings_of(Method::kH2o, 0.4);
    settings.sinks = 4;
    Reader reader(settings, kStream);
    Reader restored(settings, kStream);
    for (Reader* each : {&reader, &restored}) {
        EXPECT_EQ(each->read(100), 100U);
    }
    size_t emptied = 0;
    for (size_t position = 0; position < 100; ++position) {
        const size_t cell = restored.cell(position);
        if (restored.store.is_emptied(cell)) {
            restored.positions[cell] = -1;
            restored.evictor.forget(cell);
            ++emptied;
        }
    }
    ASSERT_GT(emptied, 10U);
    EXPECT_EQ(reader.read(60), 160U);
    EXPECT_EQ(restored.read(60), 160U) << "emptied cells were not decided on";
    for (size_t head = 0; head < kGeometry.n_head_kv; ++head) {
        EXPECT_EQ(restored.kept(head).size(), capacity_of(0.4, 160));
        EXPECT_EQ(restored.kept(head), reader.kept(head));
    }
}

TEST(EvictorTest, NoCellsNoDecision) {
    Reader reader(settings_of(Method::kH2o, 0.4));
    SingleThread team;
    EXPECT_TRUE(reader.evictor.observe(reader.store, {}, team).empty());
}

}  // namespace
}  // namespace kvcodec
