// Where the bytes of a code lie within a block of codes.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvcodec {

/// Codes of a block are one after another, or interleaved: of every kRows rows first the first 32 bits of each, then
/// the second, and so on, then the bytes that are left, so that a vector holds one word of kRows rows. Rows are in an
/// order that suits kernels, place_of().
class BlockLayout {
  public:
    /// Rows that are interleaved: a divisor of a block's.
    static constexpr size_t kRows = 16;
    static constexpr size_t kWordBytes = 4;

    BlockLayout(size_t code_bytes, bool is_interleaved) : code_bytes_(code_bytes), is_interleaved_(is_interleaved) {}

    /// Place among kRows words of row % kRows: row 4 i + j is the i-th of four in the j-th 128 bits, so that what is
    /// transposed within these comes out in the order of rows. Its own inverse.
    static constexpr size_t place_of(size_t row) { return row % 4 * 4 + row / 4 % 4; }

    /// code: [code_bytes]
    void put(const std::byte* code, size_t row, std::byte* block) const;
    void get(const std::byte* block, size_t row, std::byte* code) const;
    /// The codes of rows [first, first + n), one after another.
    void get(const std::byte* block, size_t first, size_t n, std::byte* codes) const;
    /// n codes, one after another, as blocks of them lie; [n rounded up to kRows, code_bytes].
    std::vector<std::byte> arrange(std::span<const std::byte> codes) const;

  private:
    template <class Block, class Copy>
    void for_each_part(Block* block, size_t row, const Copy& copy) const;

    size_t code_bytes_;
    bool is_interleaved_;
};

}  // namespace kvcodec
