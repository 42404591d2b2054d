#include "kvcodec/store/code_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace kvcodec {
namespace {

std::vector<uint16_t> row(uint16_t value) {
    return {value, static_cast<uint16_t>(value + 1), 7};
}

std::vector<std::byte> code(uint16_t value) {
    return {std::byte(value), std::byte(value / 2)};
}

TEST(CodeMemory, FindsTheLatestRows) {
    CodeMemory memory(2, 5);
    EXPECT_TRUE(memory.empty());
    EXPECT_FALSE(memory.find(row(1)));
    for (uint16_t value = 0; value < 12; ++value) {
        memory.remember(row(value), code(value));
        memory.remember(row(value), code(99));  // known already
        for (uint16_t other = 0; other < 12; ++other) {
            const auto found = memory.find(row(other));
            ASSERT_EQ(found.has_value(), other <= value && other + 5 > value) << other << " at " << value;
            if (found) {
                EXPECT_TRUE(std::ranges::equal(*found, code(other)));
            }
        }
    }
    EXPECT_GT(memory.resident_bytes(), 5 * (2 + 8 + 12));
    EXPECT_LT(memory.resident_bytes(), 2000);
}

TEST(CodeMemory, WithoutRoomKeepsNothing) {
    CodeMemory memory;
    memory.remember(row(1), {});
    EXPECT_TRUE(memory.empty());
}

}  // namespace
}  // namespace kvcodec
