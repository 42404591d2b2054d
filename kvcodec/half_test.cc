#include "kvcodec/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace kvcodec {
namespace {

/// The value of a half, from its fields.
double value_of(uint16_t half) {
    const int exponent = (half >> 10) & 31;
    const int mantissa = half & 0x3FF;
    double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) {
        magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
    }
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

/// The half next to a float, ties to even.
double rounded(float value) {
    const double magnitude = std::abs(double{value});
    if (magnitude >= 65520.0) {
        return std::copysign(std::numeric_limits<double>::infinity(), value);
    }
    const int exponent = magnitude == 0.0 ? -14 : std::max(std::ilogb(magnitude), -14);
    const double step = std::ldexp(1.0, exponent - 10);
    return std::copysign(std::nearbyint(magnitude / step) * step, value);
}

void expect_rounded(float value) {
    const uint16_t half = float_to_half(value);
    ASSERT_EQ(value_of(half), rounded(value)) << value;
    ASSERT_EQ((half & 0x8000) != 0, std::signbit(value)) << value;
}

TEST(Half, EveryHalfRoundTrips) {
    for (uint32_t i = 0; i < 65536; ++i) {
        const auto half = static_cast<uint16_t>(i);
        const float value = half_to_float(half);
        if (std::isnan(value_of(half))) {
            ASSERT_TRUE(std::isnan(value)) << i;
            ASSERT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << i;
        } else {
            ASSERT_EQ(double{value}, value_of(half)) << i;
            ASSERT_EQ(float_to_half(value), half);
        }
    }
}

TEST(Half, RoundsToNearestEven) {
    for (uint16_t half = 0; half < 0x7C00; ++half) {
        const double next = half == 0x7BFF ? 65536.0 : value_of(static_cast<uint16_t>(half + 1));
        const auto middle = static_cast<float>((value_of(half) + next) / 2);
        for (const float value : {middle, std::nextafter(middle, 0.0F), std::nextafter(middle, INFINITY)}) {
            expect_rounded(value);
            expect_rounded(-value);
        }
    }
}

TEST(Half, RoundsAnyFloat) {
    std::mt19937 rng(1);
    for (int i = 0; i < 1'000'000; ++i) {
        const auto value = std::bit_cast<float>(static_cast<uint32_t>(rng()));
        if (!std::isnan(value)) {
            expect_rounded(value);
        }
        // Most random bits are far outside the range of halves.
        expect_rounded(
            std::ldexp(1.0F + std::ldexp(static_cast<float>(rng() >> 8), -24), static_cast<int>(i % 45) - 27));
    }
}

}  // namespace
}  // namespace kvcodec
