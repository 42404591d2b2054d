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

    /// Null before the first put(). Valid until the next one.
    const std::byte* data() const { return bytes_.empty() ? nullptr : bytes_.data(); }
    /// Replaces the code of one row. Codes of a block must not exceed 65,000 bytes together.
    void put(size_t row, std::span<const std::byte> code);
    /// The code of one row; empty if it was never written.
    std::span<const std::byte> code(size_t row) const;
    void clear() { *this = {}; }

    size_t resident_bytes() const { return bytes_.capacity() + (bytes_.empty() ? 0 : sizeof(length_)); }

  private:
    void make_room(size_t n);

    std::vector<std::byte> bytes_;  // table, codes, room, slack for readers
    std::array<uint16_t, kRows> length_{};
    size_t used_ = 0;  // of bytes_, table included
};

}  // namespace kvcodec
