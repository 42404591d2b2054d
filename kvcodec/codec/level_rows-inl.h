// Products of rows of 8-bit levels with lanes, and what else has few lanes. Included by files that are compiled once
// per SIMD target.
#if defined(KVCODEC_CODEC_LEVEL_ROWS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCODEC_CODEC_LEVEL_ROWS_INL_H
#undef KVCODEC_CODEC_LEVEL_ROWS_INL_H
#else
#define KVCODEC_CODEC_LEVEL_ROWS_INL_H
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace level_rows {
namespace hn = hwy::HWY_NAMESPACE;

using Wide = hn::CappedTag<float, 16>;
using Quad = hn::FixedTag<float, 4>;

constexpr size_t kLaneTile = 4;
constexpr size_t kMaxDim = 1024;
constexpr size_t kMaxRows = 64;
/// Levels lie in rows of a multiple of this many.
constexpr size_t kStrideMultiple = 32;

/// Vectors scale * level of `dim` elements, a multiple of 16. Levels past dim are arbitrary.
struct LevelRows {
    const int8_t* levels;  // [n, stride]
    size_t stride;
    const float* scale;  // [n]
    size_t n;            // at most kMaxRows
    size_t dim;
};

template <class D>
HWY_INLINE hn::Vec<D> load_levels(D d, const int8_t* levels) {
    const hn::Rebind<int8_t, D> bytes;
    const hn::Rebind<int32_t, D> integers;
    return hn::ConvertTo(d, hn::PromoteTo(integers, hn::LoadU(bytes, levels)));
}

template <class D>
HWY_INLINE hn::Vec<D> load_levels(D d, const float* levels) {
    return hn::LoadU(d, levels);
}

/// Sum of all blocks of four.
template <class D>
HWY_INLINE hn::Vec<Quad> sum_quads(D d, hn::Vec<D> v) {
    if constexpr (hn::MaxLanes(d) == 4) {
        return v;
    } else {
        const hn::Half<D> half;
        return sum_quads(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    }
}

/// The sums of four vectors.
template <class D>
HWY_INLINE hn::Vec<Quad> sums_of_four(D d, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> c, hn::Vec<D> e) {
    const hn::Repartition<uint64_t, D> d64;
    const auto ab = hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
    const auto ce = hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
    const auto lower = hn::BitCast(d, hn::InterleaveLower(d64, ab, ce));
    const auto upper = hn::BitCast(d, hn::InterleaveUpper(d64, ab, ce));
    return sum_quads(d, hn::Add(lower, upper));
}

/// Four lanes of table [dim, lanes] as four rows [4, dim].
inline void transpose_tile(const float* HWY_RESTRICT table, size_t lanes, size_t dim, float* HWY_RESTRICT tile) {
    const Wide d;
    const Quad quad;
    HWY_ALIGN float buffer[kLaneTile * hn::MaxLanes(d)];
    auto v0 = hn::Zero(d);
    auto v1 = v0;
    auto v2 = v0;
    auto v3 = v0;
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        for (size_t j = 0; j < hn::Lanes(d); ++j) {
            hn::Store(hn::LoadU(quad, table + (i + j) * lanes), quad, buffer + kLaneTile * j);
        }
        hn::LoadInterleaved4(d, buffer, v0, v1, v2, v3);
        hn::Store(v0, d, tile + i);
        hn::Store(v1, d, tile + dim + i);
        hn::Store(v2, d, tile + 2 * dim + i);
        hn::Store(v3, d, tile + 3 * dim + i);
    }
}

/// Two rows of levels, 8-bit integers or floats, times four lanes tile [4, dim].
template <class T>
HWY_INLINE void score_pair(const float* HWY_RESTRICT tile, size_t dim, const T* HWY_RESTRICT levels0,
                           const T* HWY_RESTRICT levels1, float scale0, float scale1, float* s0, float* s1) {
    const Wide d;
    const Quad quad;
    auto s00 = hn::Zero(d);
    auto s01 = s00;
    auto s02 = s00;
    auto s03 = s00;
    auto s10 = s00;
    auto s11 = s00;
    auto s12 = s00;
    auto s13 = s00;
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        const auto x0 = load_levels(d, levels0 + i);
        const auto x1 = load_levels(d, levels1 + i);
        const auto t0 = hn::Load(d, tile + i);
        s00 = hn::MulAdd(x0, t0, s00);
        s10 = hn::MulAdd(x1, t0, s10);
        const auto t1 = hn::Load(d, tile + dim + i);
        s01 = hn::MulAdd(x0, t1, s01);
        s11 = hn::MulAdd(x1, t1, s11);
        const auto t2 = hn::Load(d, tile + 2 * dim + i);
        s02 = hn::MulAdd(x0, t2, s02);
        s12 = hn::MulAdd(x1, t2, s12);
        const auto t3 = hn::Load(d, tile + 3 * dim + i);
        s03 = hn::MulAdd(x0, t3, s03);
        s13 = hn::MulAdd(x1, t3, s13);
    }
    hn::StoreU(hn::Mul(sums_of_four(d, s00, s01, s02, s03), hn::Set(quad, scale0)), quad, s0);
    hn::StoreU(hn::Mul(sums_of_four(d, s10, s11, s12, s13), hn::Set(quad, scale1)), quad, s1);
}

/// s [n, lanes] = rows . table, table [dim, lanes].
inline void score(const LevelRows& rows, const float* table, size_t lanes, float* s) {
    HWY_ALIGN float tile[kLaneTile * kMaxDim];
    for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
        transpose_tile(table + lane, lanes, rows.dim, tile);
        for (size_t i = 0; i < rows.n; i += 2) {
            const size_t next = std::min(i + 1, rows.n - 1);
            score_pair(tile, rows.dim, rows.levels + i * rows.stride, rows.levels + next * rows.stride, rows.scale[i],
                       rows.scale[next], s + i * lanes + lane, s + next * lanes + lane);
        }
    }
}

/// Elements [first, first + 2 * Lanes) of acc, four lanes, += weights [n, 4] times levels.
inline void accumulate_tile(const LevelRows& rows, const float* HWY_RESTRICT weights, size_t first,
                            float* HWY_RESTRICT acc, size_t lanes) {
    const Wide d;
    const Quad quad;
    const size_t width = hn::Lanes(d);
    auto a00 = hn::Zero(d);
    auto a10 = a00;
    auto a20 = a00;
    auto a30 = a00;
    auto a01 = a00;
    auto a11 = a00;
    auto a21 = a00;
    auto a31 = a00;
    const int8_t* HWY_RESTRICT levels = rows.levels + first;
    for (size_t i = 0; i < rows.n; ++i, levels += rows.stride, weights += kLaneTile) {
        const auto x0 = load_levels(d, levels);
        const auto x1 = load_levels(d, levels + width);
        const auto w0 = hn::Set(d, weights[0]);
        a00 = hn::MulAdd(w0, x0, a00);
        a01 = hn::MulAdd(w0, x1, a01);
        const auto w1 = hn::Set(d, weights[1]);
        a10 = hn::MulAdd(w1, x0, a10);
        a11 = hn::MulAdd(w1, x1, a11);
        const auto w2 = hn::Set(d, weights[2]);
        a20 = hn::MulAdd(w2, x0, a20);
        a21 = hn::MulAdd(w2, x1, a21);
        const auto w3 = hn::Set(d, weights[3]);
        a30 = hn::MulAdd(w3, x0, a30);
        a31 = hn::MulAdd(w3, x1, a31);
    }
    HWY_ALIGN float sums[2 * kLaneTile * hn::MaxLanes(d)];
    hn::StoreInterleaved4(a00, a10, a20, a30, d, sums);
    hn::StoreInterleaved4(a01, a11, a21, a31, d, sums + kLaneTile * width);
    for (size_t i = 0; i < std::min(2 * width, rows.dim - first); ++i) {
        float* HWY_RESTRICT out = acc + (first + i) * lanes;
        hn::StoreU(hn::Add(hn::LoadU(quad, out), hn::Load(quad, sums + i * kLaneTile)), quad, out);
    }
}

/// acc [dim, lanes] += p [n, lanes] times rows.
inline void accumulate(const LevelRows& rows, const float* p, size_t lanes, float* acc) {
    const Quad quad;
    HWY_ALIGN float weights[kMaxRows * kLaneTile];
    for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
        for (size_t i = 0; i < rows.n; ++i) {
            const auto scale = hn::Set(quad, rows.scale[i]);
            hn::Store(hn::Mul(hn::LoadU(quad, p + i * lanes + lane), scale), quad, weights + i * kLaneTile);
        }
        for (size_t i = 0; i < rows.dim; i += 2 * hn::Lanes(Wide())) {
            accumulate_tile(rows, weights, i, acc + lane, lanes);
        }
    }
}

/// The same for any number of a codec's rows: Chunk::load(format, codes, rows) makes LevelRows of up to kMaxRows.
template <class Chunk, class Format>
void score_all(const Format& format, const float* table, size_t lanes, const uint8_t* codes,
               std::span<const uint16_t> rows, float* s) {
    Chunk chunk;
    for (size_t begin = 0; begin < rows.size(); begin += kMaxRows, s += kMaxRows * lanes) {
        const auto part = rows.subspan(begin, std::min(kMaxRows, rows.size() - begin));
        score(chunk.load(format, codes, part), table, lanes, s);
    }
}
template <class Chunk, class Format>
void accumulate_all(const Format& format, const float* p, size_t lanes, const uint8_t* codes,
                    std::span<const uint16_t> rows, float* acc) {
    Chunk chunk;
    for (size_t begin = 0; begin < rows.size(); begin += kMaxRows, p += kMaxRows * lanes) {
        const auto part = rows.subspan(begin, std::min(kMaxRows, rows.size() - begin));
        accumulate(chunk.load(format, codes, part), p, lanes, acc);
    }
}

}  // namespace level_rows
}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#endif
