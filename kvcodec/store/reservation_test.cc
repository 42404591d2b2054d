#include "kvcodec/store/reservation.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

constexpr size_t kPage = Reservation::kPageBytes;

TEST(Reservation, StartsWhereItIsAskedTo) {
    for (const size_t alignment : {Reservation::kPageBytes, size_t{1} << 16, size_t{1} << 21}) {
        Reservation memory(100'000, alignment);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % alignment, 0U);
        EXPECT_GE(memory.size(), 100'000U);
        std::memset(memory.data(), 1, memory.size());
        memory.make_huge(0, memory.size());
        EXPECT_EQ(memory.data()[memory.size() - 1], std::byte{1});
    }
}

TEST(Reservation, BecomesMemoryWhereTouched) {
    Reservation memory(100 * kPage - 5);
    EXPECT_EQ(memory.size(), 100 * kPage);
    EXPECT_EQ(memory.resident_bytes(), 0U);
    memory.data()[3 * kPage + 17] = std::byte{1};
    EXPECT_EQ(memory.resident_bytes(), kPage);
    std::memset(memory.data() + 10 * kPage, 1, 20 * kPage);
    EXPECT_EQ(memory.resident_bytes(), 21 * kPage);
}

TEST(Reservation, ReleasesWholePagesInside) {
    Reservation memory(10 * kPage);
    std::memset(memory.data(), 1, memory.size());
    memory.release(2 * kPage + 1, 3 * kPage);  // pages 3 and 4 lie inside
    EXPECT_EQ(memory.resident_bytes(), 8 * kPage);
    EXPECT_EQ(memory.data()[3 * kPage - 1], std::byte{1});
    EXPECT_EQ(memory.data()[5 * kPage], std::byte{1});
    EXPECT_EQ(memory.data()[3 * kPage], std::byte{0});
    EXPECT_EQ(memory.data()[5 * kPage - 1], std::byte{0});
    memory.release(6 * kPage + 1, kPage);  // none
    EXPECT_EQ(memory.data()[6 * kPage], std::byte{1});
    EXPECT_EQ(memory.data()[7 * kPage], std::byte{1});
    memory.release(0, memory.size());
    EXPECT_EQ(memory.resident_bytes(), 0U);
}

TEST(Reservation, CountsPagesOfLargeRanges) {
    Reservation memory(size_t{1} << 32);
    const size_t places[] = {0, size_t{1} << 26, (size_t{1} << 26) - 1, size_t{3} << 30, memory.size() - 1};
    for (const size_t place : places) {
        memory.data()[place] = std::byte{1};
    }
    EXPECT_EQ(memory.resident_bytes(), 5 * kPage);
}

TEST(Reservation, Moves) {
    Reservation first(2 * kPage);
    std::byte* data = first.data();
    data[0] = std::byte{9};
    Reservation second(std::move(first));
    EXPECT_EQ(second.data(), data);
    Reservation third(5 * kPage);
    third = std::move(second);
    EXPECT_EQ(third.data(), data);
    EXPECT_EQ(third.size(), 2 * kPage);
    EXPECT_EQ(third.data()[0], std::byte{9});
}

TEST(Reservation, MayBeEmpty) {
    Reservation none;
    none.release(0, 0);
    EXPECT_EQ(none.size(), 0U);
    EXPECT_EQ(none.resident_bytes(), 0U);
    EXPECT_EQ(Reservation(0).data(), nullptr);
}

TEST(Reservation, RefusesMoreThanTheAddressSpace) {
    EXPECT_THROW(Reservation(size_t{1} << 60), Error);
}

TEST(Reservation, UnprotectedPagesReadAsZeroAgain) {
    Reservation memory(4 * kPage);
    std::memset(memory.data(), 1, memory.size());
    memory.protect(kPage, 2 * kPage);
    EXPECT_EQ(memory.resident_bytes(), 2 * kPage);
    EXPECT_EQ(memory.data()[kPage - 1], std::byte{1});
    EXPECT_EQ(memory.data()[3 * kPage], std::byte{1});
    memory.unprotect(kPage, 2 * kPage);
    EXPECT_EQ(memory.data()[kPage], std::byte{0});
    memory.data()[2 * kPage] = std::byte{5};
    EXPECT_EQ(memory.data()[2 * kPage], std::byte{5});
}

TEST(ReservationDeathTest, ProtectedPagesFault) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    Reservation memory(2 * kPage);
    memory.protect(kPage, kPage);
    const volatile std::byte* stray = memory.data() + kPage;
    EXPECT_DEATH(static_cast<void>(*stray), "");
}

}  // namespace
}  // namespace kvcodec
