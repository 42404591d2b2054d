#include "kvcodec/store/code_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace kvcodec {
namespace {

TEST(CodeArena, PiecesKeepWhatIsWritten) {
    std::mt19937 rng(1);
    CodeArena arena;
    struct Piece {
        std::byte* data;
        size_t bytes;
        std::byte content;
    };
    std::vector<Piece> pieces;
    const auto check = [](const Piece& piece) {
        return std::all_of(piece.data, piece.data + piece.bytes, [&](std::byte b) { return b == piece.content; });
    };
    constexpr size_t kSizes[] = {
        1, 64, 4992, 5000, 100'000, CodeArena::kHugePageBytes, 3 * CodeArena::kHugePageBytes + 1};
    for (size_t round = 0; round < 2000; ++round) {
        if (rng() % 3 != 0 || pieces.empty()) {
            const size_t bytes = kSizes[rng() % (rng() % 20 == 0 ? 7 : 5)];
            const Piece piece{arena.take(bytes), bytes, static_cast<std::byte>(rng())};
            ASSERT_EQ(reinterpret_cast<uintptr_t>(piece.data) % CodeArena::kPieceMultiple, 0U);
            std::memset(piece.data, static_cast<int>(piece.content), bytes);
            // What lies behind a piece can be read.
            volatile std::byte behind = piece.data[bytes + CodeArena::kSlackBytes - 1];
            (void)behind;
            pieces.push_back(piece);
        } else {
            std::swap(pieces[rng() % pieces.size()], pieces.back());
            ASSERT_TRUE(check(pieces.back()));
            arena.give_back(pieces.back().data, pieces.back().bytes);
            pieces.pop_back();
        }
    }
    for (const Piece& piece : pieces) {
        ASSERT_TRUE(check(piece));
        arena.give_back(piece.data, piece.bytes);
    }
    EXPECT_EQ(arena.taken_bytes(), 0U);
    EXPECT_EQ(arena.idle_bytes(), 0U);
}

TEST(CodeArena, LittleLiesIdle) {
    CodeArena arena;
    constexpr size_t kBytes = 4992;
    std::vector<std::byte*> pieces;
    for (size_t i = 0; i < 1500; ++i) {
        pieces.push_back(arena.take(kBytes));
        std::memset(pieces.back(), 1, kBytes);
        ASSERT_LE(arena.idle_bytes(), Reservation::kPageBytes);
    }
    EXPECT_EQ(arena.taken_bytes(), pieces.size() * kBytes);
    // Pieces of the same size are used again.
    for (size_t i = 0; i < 1000; ++i) {
        arena.give_back(pieces.back(), kBytes);
        pieces.pop_back();
    }
    const size_t idle = arena.idle_bytes();
    EXPECT_GE(idle, 1000 * kBytes);
    for (size_t i = 0; i < 1000; ++i) {
        pieces.push_back(arena.take(kBytes));
    }
    EXPECT_LE(arena.idle_bytes(), idle - 1000 * kBytes);
}

TEST(CodeArena, WhatOneLayerGivesUpIsForOthers) {
    CodeArena arena;
    std::byte* kept = arena.take(5000);
    std::memset(kept, 7, 5000);
    std::byte* given_up = arena.take(5000);
    arena.give_back(given_up, 5000);
    EXPECT_EQ(arena.take(4999), given_up);
    EXPECT_EQ(kept[4999], std::byte{7});
}

}  // namespace
}  // namespace kvcodec
