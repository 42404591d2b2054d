// IEEE half precision without hardware support, for single values; kernels convert whole vectors themselves.
#pragma once

#include <bit>
#include <cstdint>

namespace kvcodec {

inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
    const uint32_t exponent_and_mantissa = half & 0x7FFFU;
    if (exponent_and_mantissa >= 0x7C00U) {  // infinity or NaN
        return std::bit_cast<float>(sign | 0x7F800000U | ((exponent_and_mantissa & 0x3FFU) << 13));
    }
    // The exponent bias differs by 112; multiplying by 2^112 also turns subnormals into normals.
    const float magnitude = std::bit_cast<float>(exponent_and_mantissa << 13) * 0x1p112F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

/// Rounds to nearest even; magnitudes from 65520 on become infinity.
inline uint16_t float_to_half(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
    const uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) {
        return sign | 0x7E00U;
    }
    if (magnitude >= 0x477FF000U) {
        return sign | 0x7C00U;
    }
    if (magnitude < 0x38800000U) {  // subnormal half: adding 0.5 aligns the mantissa
        const float aligned = std::bit_cast<float>(magnitude) + 0.5F;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3F000000U));
    }
    const uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

}  // namespace kvcodec
