// Where the ones are among bits: the high bits of ascending indices (Elias 1974, Fano 1971).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcodec {

/// The same bits of each of some codes.
struct BitField {
    size_t first;  ///< bit of a code
    size_t n;      ///< 1 to kMaxOneBits
};

/// From one code's positions to the next one's, where find_ones() writes them.
inline constexpr size_t kOnesStride = 128;
/// What find_ones() can count.
inline constexpr size_t kMaxOnes = 64;
/// Positions are bytes.
inline constexpr size_t kMaxOneBits = 256;

/// For each of n codes: count[i], the ones among its bits, at most `most` <= kMaxOnes, and where they are in ascending
/// order, counted from the first bit of the field, from position[i * kOnesStride] on; any bytes follow, up to the next
/// one's. Reads up to 8 bytes behind the byte that a field ends in.
/// vbmi2: by an instruction of AVX-512 VBMI2, which a machine has where has_avx512_vnni() says so.
void find_ones(const uint8_t* const* codes, size_t n, BitField field, size_t most, bool vbmi2, uint8_t* position,
               size_t* count);

}  // namespace kvcodec
