// Codes of one block and head whose lengths differ.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvcodec/codec/codec.h"

namespace kvcodec {

/// What a codec of variable length reads: the place of each row's code, counted in bytes from the beginning, then the
/// codes in any order. A row that was never written has place 0.
class VariableBlock {
  public:
    static constexpr size_t kRows = 64;
    static constexpr size_t kMostBytes = 255;  ///< of one code
    /// What a row takes besides its code: its place, its length, its share of the block.
    static constexpr double kBytesBesideCode = sizeof(uint16_t) + 1.5;

    /// Null before the first put(). Valid until the next one.
    const std::byte* data() const { return bytes_.empty() ? nullptr : bytes_.data(); }
    /// Replaces the code of one row, at most kMostBytes.
    void put(size_t row, std::span<const std::byte> code);
    /// The code of one row; empty if it was never written.
    std::span<const std::byte> code(size_t row) const;
    void clear() { *this = {}; }

    /// Without the object itself.
    size_t resident_bytes() const { return bytes_.capacity(); }

  private:
    void make_room(size_t n);

    std::vector<std::byte> bytes_;  // table, codes, room, slack for readers
    std::array<uint8_t, kRows> length_{};
    size_t used_ = 0;  // of bytes_, table included
};

}  // namespace kvcodec
