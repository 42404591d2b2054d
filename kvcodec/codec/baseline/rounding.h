// Round-to-nearest over the range of a group, and packing of the indices.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcodec {

/// Elements that share a range.
inline constexpr size_t kRangeGroup = 32;

/// x = scale * index + minimum. Both in half precision.
struct RangeCode {
    uint16_t scale = 0;
    uint16_t minimum = 0;
};

/// The nearest finite half-precision number's magnitude at most; NaN becomes 0.
float to_finite_half_range(float value);

/// index = round((x - min) / scale), scale = (max - min) / (2^bits - 1), for n elements that lie `stride` apart in x
/// and in index. The index is taken from the exact scale and minimum, what is stored is rounded to half precision: the
/// arithmetic of ggml's q4_1. x may hold anything; see to_finite_half_range().
RangeCode round_to_nearest(const float* x, size_t n, size_t stride, unsigned bits, uint8_t* index);

/// Bytes of n indices.
constexpr size_t packed_bytes(size_t n, unsigned bits) {
    return (n * bits + 7) / 8;
}
/// Indices one after the other from the lowest bit on; unused bits of the last byte are 0. bits: at most 8.
void pack_indices(const uint8_t* index, size_t n, unsigned bits, std::byte* packed);
void unpack_indices(const std::byte* packed, size_t n, unsigned bits, uint8_t* index);

}  // namespace kvcodec
