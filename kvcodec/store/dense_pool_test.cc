#include "kvcodec/store/dense_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace kvcodec {
namespace {

constexpr size_t kPage = Reservation::kPageBytes;
constexpr size_t kRows = 1000;

size_t pages(size_t bytes) {
    return (bytes + kPage - 1) / kPage;
}

void fill(const DensePool& pool, uint32_t slot) {
    std::memset(pool.row(slot), static_cast<int>(slot % 251) + 1, pool.row_bytes());
}

bool is_filled(const DensePool& pool, uint32_t slot) {
    for (size_t i = 0; i < pool.row_bytes(); ++i) {
        if (pool.row(slot)[i] != static_cast<std::byte>(slot % 251 + 1)) {
            return false;
        }
    }
    return true;
}

/// Takes and fills all rows.
void fill_all(DensePool& pool) {
    for (uint32_t slot = 0; slot < kRows; ++slot) {
        ASSERT_EQ(pool.acquire(), slot);
        fill(pool, slot);
    }
}

class DensePoolTest : public testing::TestWithParam<size_t> {
  protected:
    const size_t row_bytes_ = GetParam();
};

TEST_P(DensePoolTest, ReusesTheLowestSlotFirst) {
    DensePool pool(row_bytes_, kRows, true);
    std::set<uint32_t> live;
    std::mt19937 rng(3);
    for (int i = 0; i < 5000; ++i) {
        if (live.size() < kRows && rng() % 2 == 0) {
            uint32_t lowest = 0;
            while (live.count(lowest) != 0) {
                ++lowest;
            }
            ASSERT_EQ(pool.acquire(), lowest);
            fill(pool, lowest);
            live.insert(lowest);
        } else if (!live.empty()) {
            const auto victim = std::next(live.begin(), static_cast<std::ptrdiff_t>(rng() % live.size()));
            pool.release(*victim);
            live.erase(victim);
        }
        ASSERT_EQ(pool.size(), live.size());
        if (rng() % 16 == 0) {
            pool.trim();
        }
    }
    for (const uint32_t slot : live) {
        EXPECT_TRUE(is_filled(pool, slot)) << slot;
    }
}

TEST_P(DensePoolTest, GivesEmptiedPagesBack) {
    constexpr uint32_t kKept = 300;
    DensePool pool(row_bytes_, kRows, true);
    EXPECT_EQ(pool.resident_bytes(), 0U);
    fill_all(pool);
    EXPECT_EQ(pool.resident_bytes(), pages(kRows * row_bytes_) * kPage);
    for (uint32_t slot = kKept; slot < kRows; ++slot) {
        pool.release(slot);
    }
    pool.trim();
    EXPECT_EQ(pool.resident_bytes(), pages(kKept * row_bytes_) * kPage);
    for (uint32_t slot = 0; slot < kKept; ++slot) {
        ASSERT_TRUE(is_filled(pool, slot)) << slot;
    }
    // And takes them again.
    ASSERT_EQ(pool.acquire(), kKept);
    fill(pool, kKept);
    EXPECT_EQ(pool.resident_bytes(), pages((kKept + 1) * row_bytes_) * kPage);
}

TEST_P(DensePoolTest, KeepsEveryPageWithALiveRow) {
    DensePool pool(row_bytes_, kRows, true);
    fill_all(pool);
    std::vector<bool> live(kRows, true);
    for (uint32_t slot = 0; slot < kRows; ++slot) {
        if (slot / 48 % 4 != 3 && slot % 197 != 0) {
            pool.release(slot);
            live[slot] = false;
        }
    }
    // A page that filled again before trim() stays.
    const uint32_t again = pool.acquire();
    fill(pool, again);
    live[again] = true;
    pool.trim();
    std::set<size_t> live_pages;
    for (uint32_t slot = 0; slot < kRows; ++slot) {
        if (live[slot]) {
            ASSERT_TRUE(is_filled(pool, slot)) << slot;
            for (size_t page = slot * row_bytes_ / kPage; page < pages((slot + 1) * row_bytes_); ++page) {
                live_pages.insert(page);
            }
        }
    }
    EXPECT_EQ(pool.resident_bytes(), live_pages.size() * kPage);
}

TEST_P(DensePoolTest, KeepsPagesWhenToldTo) {
    DensePool pool(row_bytes_, kRows, false);
    fill_all(pool);
    const size_t full = pool.resident_bytes();
    for (uint32_t slot = 0; slot < kRows; ++slot) {
        pool.release(slot);
    }
    pool.trim();
    EXPECT_EQ(pool.size(), 0U);
    EXPECT_EQ(pool.resident_bytes(), full);
}

TEST_P(DensePoolTest, ClearsEverything) {
    DensePool pool(row_bytes_, kRows, true);
    fill_all(pool);
    pool.release(7);
    pool.clear();
    EXPECT_EQ(pool.size(), 0U);
    EXPECT_EQ(pool.resident_bytes(), 0U);
    fill_all(pool);
    for (uint32_t slot = 0; slot < kRows; ++slot) {
        pool.release(slot);
    }
    pool.trim();
    EXPECT_EQ(pool.resident_bytes(), 0U);
}

INSTANTIATE_TEST_SUITE_P(RowBytes, DensePoolTest, testing::Values(256, 640, 2048, 3072, 4096, 8192, 10240),
                         [](const auto& test) { return std::to_string(test.param); });

}  // namespace
}  // namespace kvcodec
