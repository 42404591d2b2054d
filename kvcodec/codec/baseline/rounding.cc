#include "kvcodec/codec/baseline/rounding.h"

#include <algorithm>
#include <cmath>

#include "kvcodec/half.h"

namespace kvcodec {

float to_finite_half_range(float value) {
    constexpr float kLargestHalf = 65504.0F;
    return std::isnan(value) ? 0.0F : std::clamp(value, -kLargestHalf, kLargestHalf);
}

RangeCode round_to_nearest(const float* x, size_t n, size_t stride, unsigned bits, uint8_t* index) {
    float low = to_finite_half_range(x[0]);
    float high = low;
    for (size_t i = 1; i < n; ++i) {
        const float value = to_finite_half_range(x[i * stride]);
        low = std::min(low, value);
        high = std::max(high, value);
    }
    const auto largest = static_cast<float>((1U << bits) - 1);
    const float scale = (high - low) / largest;
    const RangeCode range{float_to_half(scale), float_to_half(low)};
    // A scale that vanishes in half precision makes every index decode to the minimum.
    const float inverse = half_to_float(range.scale) == 0.0F ? 0.0F : 1.0F / scale;
    for (size_t i = 0; i < n; ++i) {
        const float level = (to_finite_half_range(x[i * stride]) - low) * inverse;
        index[i * stride] = static_cast<uint8_t>(std::min(level + 0.5F, largest));
    }
    return range;
}

void pack_indices(const uint8_t* index, size_t n, unsigned bits, std::byte* packed) {
    unsigned buffer = 0;
    unsigned filled = 0;
    for (size_t i = 0; i < n; ++i) {
        buffer |= static_cast<unsigned>(index[i]) << filled;
        filled += bits;
        if (filled >= 8) {
            *packed++ = static_cast<std::byte>(buffer & 0xFFU);
            buffer >>= 8;
            filled -= 8;
        }
    }
    if (filled != 0) {
        *packed = static_cast<std::byte>(buffer);
    }
}

void unpack_indices(const std::byte* packed, size_t n, unsigned bits, uint8_t* index) {
    const unsigned mask = (1U << bits) - 1;
    unsigned buffer = 0;
    unsigned filled = 0;
    for (size_t i = 0; i < n; ++i) {
        if (filled < bits) {
            buffer |= std::to_integer<unsigned>(*packed++) << filled;
            filled += 8;
        }
        index[i] = static_cast<uint8_t>(buffer & mask);
        buffer >>= bits;
        filled -= bits;
    }
}

}  // namespace kvcodec
