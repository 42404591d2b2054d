#include "kvcodec/codec/block_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <set>
#include <vector>

namespace kvcodec {
namespace {

std::vector<std::byte> random_bytes(size_t n, std::mt19937& rng) {
    std::vector<std::byte> bytes(n);
    std::ranges::generate(bytes, [&] { return static_cast<std::byte>(rng()); });
    return bytes;
}

TEST(BlockLayout, GetsWhatWasPut) {
    std::mt19937 rng(3);
    for (const bool is_interleaved : {false, true}) {
        for (const size_t code_bytes : {1, 3, 4, 17, 25, 33, 50, 129}) {
            const BlockLayout layout(code_bytes, is_interleaved);
            for (const size_t n : {1, 15, 16, 17, 64}) {
                const std::vector<std::byte> codes = random_bytes(n * code_bytes, rng);
                const std::vector<std::byte> block = layout.arrange(codes);
                ASSERT_EQ(block.size(), (n + 15) / 16 * 16 * code_bytes);
                std::vector<std::byte> code(code_bytes);
                for (size_t row = 0; row < n; ++row) {
                    layout.get(block.data(), row, code.data());
                    ASSERT_TRUE(std::ranges::equal(code, std::span(codes).subspan(row * code_bytes, code_bytes)));
                }
            }
        }
    }
}

TEST(BlockLayout, PutWritesItsRowAlone) {
    std::mt19937 rng(4);
    const BlockLayout layout(25, true);
    const std::vector<std::byte> before = random_bytes(64 * 25, rng), code = random_bytes(25, rng);
    std::vector<std::byte> block = before;
    layout.put(code.data(), 37, block.data());
    std::vector<std::byte> old(25), now(25);
    for (size_t row = 0; row < 64; ++row) {
        layout.get(before.data(), row, old.data());
        layout.get(block.data(), row, now.data());
        EXPECT_EQ(now, row == 37 ? code : old);
    }
}

TEST(BlockLayout, WordsOfSixteenRowsLieTogether) {
    const BlockLayout layout(9, true);
    std::vector<std::byte> codes(32 * 9);
    for (size_t row = 0; row < 32; ++row) {
        std::fill_n(&codes[row * 9], 9, static_cast<std::byte>(row));
    }
    const std::vector<std::byte> block = layout.arrange(codes);
    std::set<size_t> places;
    for (size_t row = 0; row < 32; ++row) {
        const size_t place = BlockLayout::place_of(row);
        places.insert(place);
        EXPECT_EQ(BlockLayout::place_of(place), row % 16);
        const std::byte* rows = &block[row / 16 * 16 * 9];
        for (size_t byte = 0; byte < 4; ++byte) {
            EXPECT_EQ(rows[4 * place + byte], static_cast<std::byte>(row));
            EXPECT_EQ(rows[64 + 4 * place + byte], static_cast<std::byte>(row));
        }
        EXPECT_EQ(rows[128 + place], static_cast<std::byte>(row));
    }
    EXPECT_EQ(places.size(), 16U);
}

}  // namespace
}  // namespace kvcodec
