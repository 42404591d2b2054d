#include "kvcodec/codec/variable_block.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace kvcodec {
namespace {

TEST(VariableBlock, HoldsWhatWasPutLast) {
    std::mt19937 random(3);
    VariableBlock block;
    EXPECT_EQ(block.data(), nullptr);
    std::vector<std::vector<std::byte>> expected(VariableBlock::kRows);
    size_t largest = 0;
    for (int step = 0; step < 3000; ++step) {
        const size_t row = random() % VariableBlock::kRows;
        if (random() % 8 == 0) {  // a copy within the block
            const size_t from = random() % VariableBlock::kRows;
            if (!expected[from].empty()) {
                block.put(row, block.code(from));
                expected[row] = expected[from];
            }
        } else {
            expected[row].resize(1 + random() % VariableBlock::kMostBytes);
            std::ranges::generate(expected[row], [&] { return static_cast<std::byte>(random()); });
            block.put(row, expected[row]);
        }
        size_t live = 0;
        for (size_t i = 0; i < VariableBlock::kRows; ++i) {
            const auto code = block.code(i);
            ASSERT_TRUE(std::ranges::equal(code, expected[i])) << "row " << i << " after step " << step;
            if (!code.empty()) {  // where a reader of the table finds it
                uint16_t place = 0;
                std::memcpy(&place, block.data() + i * sizeof(place), sizeof(place));
                ASSERT_EQ(block.data() + place, code.data());
            }
            live += code.size();
        }
        largest = std::max(largest, live);
    }
    EXPECT_LE(block.resident_bytes(),
              largest + VariableBlock::kRows * sizeof(uint16_t) + VariableBlock::kMostBytes + 128 + 16);
    block.clear();
    EXPECT_EQ(block.data(), nullptr);
    EXPECT_EQ(block.resident_bytes(), 0U);
}

}  // namespace
}  // namespace kvcodec
