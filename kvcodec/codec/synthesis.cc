#include "kvcodec/codec/synthesis.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvcodec/target.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/synthesis.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#ifndef KVCODEC_SYNTHESIS_ONCE
#define KVCODEC_SYNTHESIS_ONCE
namespace kvcodec {
namespace {

constexpr size_t kQuad = Synthesis::kQuad;
/// Vectors that are rebuilt together.
constexpr size_t kTall = 4;

using Rows = Synthesis::View;

/// Of some vectors.
struct Levels {
    const int8_t* levels;
    size_t stride;
    const float* scale;
    size_t n;
};
/// Where elements [begin, begin + size) of the vectors go.
struct Columns {
    size_t begin;
    size_t size;
    float* x;
};

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kTile = hn::MaxLanes(hn::CappedTag<float, 16>());

/// x [kRows, size] of elements [first, first + kTile): levels [kRows, stride] times rows.
template <size_t kRows>
HWY_INLINE void rebuild_tile(const Rows& rows, const int16_t* HWY_RESTRICT levels, size_t stride,
                             const float* HWY_RESTRICT scale, size_t first, float* HWY_RESTRICT x, size_t size) {
    const hn::FixedTag<float, kTile> d;
    const hn::FixedTag<int32_t, kTile> sums;
    const hn::FixedTag<int64_t, kTile / 2> quads;
    const hn::FixedTag<int16_t, 2 * kTile> shorts;
    const hn::FixedTag<int8_t, 2 * kTile> bytes;
    hn::Vec<decltype(sums)> sum[kRows][2];   // of kTile / 2 elements, two each
    hn::Vec<decltype(sums)> rest[kRows][2];  // unused where one instruction adds pairs, as on x86
    for (size_t r = 0; r < kRows; ++r) {
        sum[r][0] = sum[r][1] = hn::Zero(sums);
        rest[r][0] = rest[r][1] = hn::Zero(sums);
    }
    const int8_t* HWY_RESTRICT elements = rows.elements + kQuad * first;
    for (size_t j = 0; j < rows.n_rows; j += kQuad, elements += kQuad * rows.width) {
        const auto low = hn::PromoteTo(shorts, hn::LoadU(bytes, elements));
        const auto high = hn::PromoteTo(shorts, hn::LoadU(bytes, elements + 2 * kTile));
        for (size_t r = 0; r < kRows; ++r) {
            int64_t quad = 0;
            std::memcpy(&quad, levels + r * stride + j, sizeof(quad));
            const auto factors = hn::BitCast(shorts, hn::Set(quads, quad));
            sum[r][0] = hn::ReorderWidenMulAccumulate(sums, factors, low, sum[r][0], rest[r][0]);
            sum[r][1] = hn::ReorderWidenMulAccumulate(sums, factors, high, sum[r][1], rest[r][1]);
        }
    }
    const auto unit = hn::LoadU(d, rows.unit + first);
    for (size_t r = 0; r < kRows; ++r) {
        const auto low = hn::RearrangeToOddPlusEven(sum[r][0], rest[r][0]);
        const auto high = hn::RearrangeToOddPlusEven(sum[r][1], rest[r][1]);
        const auto total = hn::Add(hn::ConcatEven(sums, high, low), hn::ConcatOdd(sums, high, low));
        hn::StoreU(hn::Mul(hn::Mul(unit, hn::Set(d, scale[r])), hn::ConvertTo(d, total)), d, x + r * size);
    }
}

void rebuild_by_shorts(const Rows& rows, const Levels& of, const Columns& columns) {
    const hn::CappedTag<int16_t, 16> shorts;
    const hn::Rebind<int8_t, decltype(shorts)> bytes;
    HWY_ALIGN int16_t levels[kTall * Synthesis::kMaxRows];
    for (size_t row = 0, n = 0; row < of.n; row += n) {
        n = of.n - row >= kTall ? kTall : 1;
        for (size_t i = 0; i < n * of.stride; i += hn::Lanes(shorts)) {
            hn::Store(hn::PromoteTo(shorts, hn::LoadU(bytes, of.levels + row * of.stride + i)), shorts, levels + i);
        }
        for (size_t i = 0; i < columns.size; i += kTile) {
            float* x = columns.x + row * columns.size + i;
            if (n == kTall) {
                rebuild_tile<kTall>(rows, levels, of.stride, of.scale + row, columns.begin + i, x, columns.size);
            } else {
                rebuild_tile<1>(rows, levels, of.stride, of.scale + row, columns.begin + i, x, columns.size);
            }
        }
    }
}

// Newer AVX-512 adds products of four bytes in one instruction (VNNI). Highway has no target for it here. Not by
// intrinsics: these would need a target too, and GCC 12 copies all sums around a product.
#undef KVCODEC_BYTE_PRODUCTS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define KVCODEC_BYTE_PRODUCTS 1

constexpr size_t kWide = 16;

/// sum += a . b, four unsigned and signed bytes each.
HWY_INLINE void add_products(__m512i a, __m512i b, __m512i& sum) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

/// As rebuild_tile(), with levels moved to 0 to 255, of kVectors * kWide elements.
template <size_t kRows, size_t kVectors>
HWY_INLINE void rebuild_wide(const Rows& rows, const uint8_t* HWY_RESTRICT levels, size_t stride,
                             const float* HWY_RESTRICT scale, size_t first, float* HWY_RESTRICT x, size_t size) {
    const int32_t* HWY_RESTRICT column_sum = rows.column_sum + first;
    const float* HWY_RESTRICT unit = rows.unit + first;
    const int8_t* HWY_RESTRICT elements = rows.elements + kQuad * first;
    const size_t n_rows = rows.n_rows, row_bytes = kQuad * rows.width;
    __m512i sum[kRows][kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
        const __m512i moved = _mm512_slli_epi32(_mm512_loadu_si512(column_sum + v * kWide), 7);
        for (size_t r = 0; r < kRows; ++r) {
            sum[r][v] = _mm512_sub_epi32(_mm512_setzero_si512(), moved);
        }
    }
    for (size_t j = 0; j < n_rows; j += kQuad, elements += row_bytes) {
        __m512i part[kVectors];
        for (size_t v = 0; v < kVectors; ++v) {
            part[v] = _mm512_loadu_si512(elements + v * kQuad * kWide);
        }
        for (size_t r = 0; r < kRows; ++r) {
            int32_t quad = 0;
            std::memcpy(&quad, levels + r * stride + j, sizeof(quad));
            const __m512i factors = _mm512_set1_epi32(quad);
            for (size_t v = 0; v < kVectors; ++v) {
                add_products(factors, part[v], sum[r][v]);
            }
        }
    }
    for (size_t r = 0; r < kRows; ++r) {
        const __m512 factor = _mm512_set1_ps(scale[r]);
        for (size_t v = 0; v < kVectors; ++v) {
            const __m512 total = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][v]), _mm512_loadu_ps(unit + v * kWide));
            _mm512_storeu_ps(x + r * size + v * kWide, _mm512_mul_ps(factor, total));
        }
    }
}

template <size_t kRows>
HWY_INLINE void rebuild_rows(const Rows& rows, const uint8_t* levels, size_t stride, const float* scale,
                             const Columns& columns, float* x) {
    constexpr size_t kVectors = 4;
    size_t i = 0;
    for (; i + kVectors * kWide <= columns.size; i += kVectors * kWide) {
        rebuild_wide<kRows, kVectors>(rows, levels, stride, scale, columns.begin + i, x + i, columns.size);
    }
    for (; i < columns.size; i += kWide) {
        rebuild_wide<kRows, 1>(rows, levels, stride, scale, columns.begin + i, x + i, columns.size);
    }
}

void rebuild_by_bytes(const Rows& rows, const Levels& of, const Columns& columns) {
    const hn::FixedTag<int8_t, Synthesis::kStrideMultiple> bytes;
    HWY_ALIGN uint8_t levels[kTall * Synthesis::kMaxRows];
    for (size_t row = 0, n = 0; row < of.n; row += n) {
        n = of.n - row >= kTall ? kTall : 1;
        for (size_t i = 0; i < n * of.stride; i += hn::Lanes(bytes)) {
            const auto moved = hn::Xor(hn::LoadU(bytes, of.levels + row * of.stride + i), hn::Set(bytes, int8_t{-128}));
            hn::Store(moved, bytes, reinterpret_cast<int8_t*>(levels) + i);
        }
        float* x = columns.x + row * columns.size;
        if (n == kTall) {
            rebuild_rows<kTall>(rows, levels, of.stride, of.scale + row, columns, x);
        } else {
            rebuild_rows<1>(rows, levels, of.stride, of.scale + row, columns, x);
        }
    }
}
#else
#define KVCODEC_BYTE_PRODUCTS 0
#endif

void rebuild(const Rows& rows, const Levels& of, const Columns& columns) {
#if KVCODEC_BYTE_PRODUCTS
    if (rows.has_byte_products) {
        rebuild_by_bytes(rows, of, columns);
        return;
    }
#endif
    rebuild_by_shorts(rows, of, columns);
}

/// out [lanes, stride] += elements [begin, end) of rows times acc [n_rows, lanes].
void expand(const Rows& rows, const float* HWY_RESTRICT acc, size_t lanes, size_t begin, size_t end,
            float* HWY_RESTRICT out, size_t stride) {
    constexpr size_t kLaneTile = 4;
    const hn::CappedTag<float, 16> d;
    const hn::Rebind<int8_t, decltype(d)> bytes;
    const hn::Rebind<int32_t, decltype(d)> integers;
    for (size_t i = begin; i < end; i += hn::Lanes(d), out += hn::Lanes(d)) {
        const auto unit = hn::LoadU(d, rows.unit + i);
        for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
            hn::Vec<decltype(d)> sum[kLaneTile] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
            for (size_t j = 0; j < rows.n_rows; j += kQuad) {
                hn::Vec<decltype(bytes)> row[kQuad];
                hn::LoadInterleaved4(bytes, rows.elements + j * rows.width + kQuad * i, row[0], row[1], row[2], row[3]);
                for (size_t k = 0; k < kQuad; ++k) {
                    const auto element = hn::ConvertTo(d, hn::PromoteTo(integers, row[k]));
                    for (size_t l = 0; l < kLaneTile; ++l) {
                        sum[l] = hn::MulAdd(element, hn::Set(d, acc[(j + k) * lanes + lane + l]), sum[l]);
                    }
                }
            }
            for (size_t l = 0; l < kLaneTile; ++l) {
                float* HWY_RESTRICT to = out + (lane + l) * stride;
                hn::StoreU(hn::MulAdd(unit, sum[l], hn::LoadU(d, to)), d, to);
            }
        }
    }
}

}  // namespace
}  // namespace kvcodec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(rebuild);
HWY_EXPORT(expand);

}  // namespace

Synthesis::Synthesis(std::span<const float> rows, size_t n_rows, size_t width)
    : n_rows_(n_rows), width_(width), elements_(n_rows * width), unit_(width), column_sum_(width) {
    constexpr float kLargest = 127.0F;  // sums of kMaxRows products with levels stay far below 2^31
    for (size_t i = 0; i < width; ++i) {
        float largest = 0.0F;
        for (size_t j = 0; j < n_rows; ++j) {
            largest = std::max(largest, std::abs(rows[j * width + i]));
        }
        unit_[i] = largest / kLargest;
        for (size_t j = 0; j < n_rows; ++j) {
            const float units = unit_[i] == 0.0F ? 0.0F : rows[j * width + i] / unit_[i];
            const auto rounded = static_cast<int8_t>(std::lround(units));
            elements_[place(j, i)] = rounded;
            column_sum_[i] += rounded;
        }
    }
    has_byte_products_ = has_avx512_vnni();
}

void Synthesis::rebuild(const int8_t* levels, size_t stride, const float* scale, size_t n, Part part, float* x) const {
    HWY_DYNAMIC_DISPATCH(rebuild)(view(), {levels, stride, scale, n}, {part.begin, part.size, x});
}

void Synthesis::prepare(const float* q, size_t lanes, size_t begin, size_t end, Part part, float* table) const {
    std::vector<float> by_element(part.size * lanes);
    for (size_t lane = 0; lane < lanes; ++lane) {
        for (size_t i = 0; i < part.size; ++i) {
            by_element[i * lanes + lane] = q[lane * part.size + i];
        }
    }
    for (size_t j = begin; j < end; ++j) {
        float* row = table + j * lanes;
        std::fill_n(row, lanes, 0.0F);
        for (size_t i = 0; i < part.size; ++i) {
            const float element = at(j, part.begin + i);
            for (size_t lane = 0; lane < lanes; ++lane) {
                row[lane] += element * by_element[i * lanes + lane];
            }
        }
    }
}

void Synthesis::expand(const float* acc, size_t lanes, size_t begin, size_t end, Part part, float* out) const {
    HWY_DYNAMIC_DISPATCH(expand)
    (view(), acc, lanes, part.begin + begin, part.begin + end, out + begin, part.size);
}

}  // namespace kvcodec
#endif
