#include "kvcodec/evict/eviction_policy.h"

#include <gtest/gtest.h>

#include <numeric>

namespace kvcodec {
namespace {

using Indices = std::vector<uint32_t>;

TEST(EvictionPolicyTest, CapacityIsTheShareRoundedUp) {
    EXPECT_EQ(capacity_of(0.2, 2048), 410U);
    EXPECT_EQ(capacity_of(0.07, 100), 7U);
    EXPECT_EQ(capacity_of(0.2, 1), 1U);
    EXPECT_EQ(capacity_of(1.0, 77), 77U);
    EXPECT_EQ(capacity_of(0.5, 0), 0U);
}

TEST(EvictionPolicyTest, H2oKeepsRecentAndHeavyRows) {
    const std::vector<float> mass = {9, 1, 5, 2, 8, 3, 7, 0, 0, 0};
    const std::vector<uint8_t> kept(10, 1);
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 10), Indices());
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 6), (Indices{1, 2, 3, 5}));     // 7 8 9, and 0 4 6
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 5), (Indices{1, 2, 3, 5, 6}));  // the odd one is recent
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 1), (Indices{0, 1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 0).size(), 10U);
}

TEST(EvictionPolicyTest, EvictedRowsNeitherReturnNorCount) {
    const std::vector<float> mass = {9, 1, 5, 2, 8, 3, 7, 0, 0, 0};
    const std::vector<uint8_t> kept = {0, 1, 1, 1, 0, 1, 1, 1, 0, 1};
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 7), Indices());
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 4), (Indices{1, 3, 5}));  // 7 9, and 2 6
}

TEST(EvictionPolicyTest, OfEqualMassTheLaterStays) {
    const std::vector<float> mass = {1, 1, 1, 1, 0, 0};
    const std::vector<uint8_t> kept(6, 1);
    EXPECT_EQ(evicted_by_h2o({mass, kept}, 4), (Indices{0, 1}));
}

TEST(EvictionPolicyTest, SinksStayWithinTheCapacity) {
    const std::vector<float> mass = {0, 0, 5, 2, 8, 3, 7, 0, 0, 0};
    const std::vector<uint8_t> kept(10, 1);
    EXPECT_EQ(evicted_by_h2o({mass, kept, 2}, 6), (Indices{2, 3, 5, 6}));  // 0 1, 7 8 9, and 4
    EXPECT_EQ(evicted_by_h2o({mass, kept, 2}, 3), (Indices{2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(evicted_by_h2o({mass, kept, 5}, 3), (Indices{3, 4, 5, 6, 7, 8, 9}));
    EXPECT_EQ(evicted_by_snapkv({mass, kept, 1}, 2, 4),
              (Indices{1, 2, 3, 4, 5, 6}));  // 0, 8 9, and the later of equals
}

TEST(EvictionPolicyTest, SnapKvPoolsOverSevenNeighbours) {
    std::vector<float> mass(30, 0.0F);
    mass[10] = 2;
    mass[20] = 1;
    mass[28] = 50;  // within the observation window: nobody's neighbour
    const std::vector<uint8_t> kept(30, 1);
    const auto left = [&](size_t capacity) {
        Indices rows(30);
        std::iota(rows.begin(), rows.end(), 0U);
        for (const uint32_t row : evicted_by_snapkv({mass, kept}, 4, capacity)) {
            std::erase(rows, row);
        }
        return rows;
    };
    EXPECT_EQ(left(11), (Indices{7, 8, 9, 10, 11, 12, 13, 26, 27, 28, 29}));
    EXPECT_EQ(left(18), (Indices{7, 8, 9, 10, 11, 12, 13, 17, 18, 19, 20, 21, 22, 23, 26, 27, 28, 29}));
    EXPECT_EQ(left(4), (Indices{26, 27, 28, 29}));
    EXPECT_EQ(left(2), (Indices{28, 29})) << "a capacity below the window cuts it";
    EXPECT_EQ(left(30).size(), 30U);
}

TEST(EvictionPolicyTest, SnapKvNeighboursAreCellsNotSurvivors) {
    const std::vector<float> mass = {0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0};
    std::vector<uint8_t> kept(12, 1);
    for (size_t i = 4; i < 9; ++i) {
        kept[i] = 0;
    }
    // 3 is six cells away from the heavy one though next to it among the survivors.
    EXPECT_EQ(evicted_by_snapkv({mass, kept}, 0, 3), (Indices{0, 1, 2, 3}));
}

TEST(EvictionPolicyTest, PyramidLayersFallFromTwiceTheMeanToATwentieth) {
    constexpr size_t kLayers = 30;
    constexpr size_t kCells = 10'000;
    const auto capacity = [&](size_t mean, size_t layer) {
        return pyramidkv_capacity(mean, kCells, 32, layer, kLayers);
    };
    EXPECT_EQ(capacity(1032, 0), 32 + 2 * 1000 - 50U);
    EXPECT_EQ(capacity(1032, kLayers - 1), 32 + 50U);
    for (size_t layer = 1; layer < kLayers; ++layer) {
        EXPECT_NEAR(capacity(1032, layer - 1) - capacity(1032, layer), 1900.0 / 29, 2.0) << "more than rounding";
    }
}

TEST(EvictionPolicyTest, PyramidLayersSumToTheTotal) {
    for (const size_t n_layers : {1, 2, 7, 30, 80}) {
        for (const size_t n_cells : {50, 333, 2048, 10'000}) {
            for (const double budget : {0.01, 0.2, 0.333, 0.55, 0.95, 1.0}) {
                const size_t mean = capacity_of(budget, n_cells);
                size_t sum = 0;
                for (size_t layer = 0; layer < n_layers; ++layer) {
                    const size_t capacity = pyramidkv_capacity(mean, n_cells, 32, layer, n_layers);
                    EXPECT_LE(capacity, n_cells);
                    EXPECT_GE(capacity, std::min<size_t>(mean, 32));
                    sum += capacity;
                }
                EXPECT_EQ(sum, mean * n_layers) << n_layers << " layers, " << n_cells << " cells, " << budget;
            }
        }
    }
}

}  // namespace
}  // namespace kvcodec
