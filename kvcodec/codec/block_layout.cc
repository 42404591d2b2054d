#include "kvcodec/codec/block_layout.h"

#include <cstring>

namespace kvcodec {

// copy(where in the block, where in the code, bytes) for every part of a row's code that lies together.
template <class Block, class Copy>
void BlockLayout::for_each_part(Block* block, size_t row, const Copy& copy) const {
    if (!is_interleaved_) {
        copy(block + row * code_bytes_, 0, code_bytes_);
        return;
    }
    block += row / kRows * kRows * code_bytes_;
    const size_t place = place_of(row % kRows), n_words = code_bytes_ / kWordBytes;
    for (size_t word = 0; word < n_words; ++word) {
        copy(block + (word * kRows + place) * kWordBytes, word * kWordBytes, kWordBytes);
    }
    for (size_t at = n_words * kWordBytes; at < code_bytes_; ++at) {
        copy(block + at * kRows + place, at, 1);
    }
}

void BlockLayout::put(const std::byte* code, size_t row, std::byte* block) const {
    for_each_part(block, row, [&](std::byte* to, size_t at, size_t n) { std::memcpy(to, code + at, n); });
}

void BlockLayout::get(const std::byte* block, size_t row, std::byte* code) const {
    for_each_part(block, row, [&](const std::byte* from, size_t at, size_t n) { std::memcpy(code + at, from, n); });
}

void BlockLayout::get(const std::byte* block, size_t first, size_t n, std::byte* codes) const {
    for (size_t i = 0; i < n; ++i) {
        get(block, first + i, codes + i * code_bytes_);
    }
}

std::vector<std::byte> BlockLayout::arrange(std::span<const std::byte> codes) const {
    const size_t n = codes.size() / code_bytes_;
    std::vector<std::byte> block((n + kRows - 1) / kRows * kRows * code_bytes_);
    for (size_t row = 0; row < n; ++row) {
        put(&codes[row * code_bytes_], row, block.data());
    }
    return block;
}

}  // namespace kvcodec
