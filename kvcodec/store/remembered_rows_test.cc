#include "kvcodec/store/remembered_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace kvcodec {
namespace {

std::vector<uint16_t> row(uint16_t value) {
    return {value, static_cast<uint16_t>(value + 1), 7};
}

std::vector<std::byte> code(uint16_t value) {
    return {std::byte(value), std::byte(value / 2)};
}

void remember(RememberedRows& codes, uint16_t value) {
    codes.remember(row(value), code(value));
}

void expect_known(const RememberedRows& codes, uint16_t value) {
    const auto found = codes.find(row(value));
    ASSERT_TRUE(found.has_value()) << value;
    EXPECT_TRUE(std::ranges::equal(*found, code(value))) << value;
}

TEST(RememberedRows, FindsWhatWasRememberedFirst) {
    RememberedRows codes(2, 100);
    EXPECT_TRUE(codes.empty());
    EXPECT_EQ(codes.resident_bytes(), 0U);
    EXPECT_FALSE(codes.find(row(1)));
    for (uint16_t value = 0; value < 100; ++value) {
        remember(codes, value);
    }
    for (uint16_t value = 0; value < 100; ++value) {
        expect_known(codes, value);
    }
    EXPECT_FALSE(codes.find(row(100)));
    EXPECT_GE(codes.resident_bytes(), 100 * (2 + 8 + 8 + 2 * sizeof(uint32_t)));
    EXPECT_LE(codes.resident_bytes(), 100 * (2 + 2 * 8 + 2 * 8 + 4 * sizeof(uint32_t)));
}

TEST(RememberedRows, RowsThatAreReadAgainStay) {
    constexpr uint16_t kRows = 40;
    RememberedRows codes(2, kRows);
    // Of each round's rows, which fit, half are those of the round before.
    for (uint16_t round = 0; round < 200; ++round) {
        for (uint16_t i = 0; i < kRows; ++i) {
            remember(codes, static_cast<uint16_t>(round * kRows / 2 + i));
        }
        for (uint16_t i = 0; i < kRows; ++i) {
            expect_known(codes, static_cast<uint16_t>(round * kRows / 2 + i));
        }
    }
    // The oldest of a full one that is read again, and one more.
    const uint16_t oldest = 199 * kRows / 2;
    remember(codes, oldest);
    remember(codes, 60000);
    expect_known(codes, oldest);
    expect_known(codes, 60000);
}

TEST(RememberedRows, TheLastWordCounts) {
    RememberedRows codes(2, 3);
    for (const uint16_t value : {1, 2, 3, 4, 3, 3}) {
        codes.remember(row(3), code(value));
        remember(codes, value == 3 ? 5 : 7);
    }
    expect_known(codes, 3);
}

TEST(RememberedRows, NeverGivesAnotherRowsCode) {
    std::mt19937 random(1);
    RememberedRows codes(2, 30);
    for (int step = 0; step < 20000; ++step) {
        remember(codes, static_cast<uint16_t>(random() % 90));
        const auto value = static_cast<uint16_t>(random() % 90);
        if (codes.find(row(value))) {
            expect_known(codes, value);
        }
    }
}

TEST(RememberedRows, WithoutRoomKeepsNothing) {
    RememberedRows codes;
    EXPECT_FALSE(codes.has_room());
    codes.remember(row(1), {});
    EXPECT_TRUE(codes.empty());
}

}  // namespace
}  // namespace kvcodec
