#include "kvcodec/codec/scalar/scalar_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "kvcodec/codec/shrinkage.h"
#include "kvcodec/error.h"

// Scalable vectors cannot be captured by lambdas; ARM machines with SVE run the NEON code.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/scalar/scalar_codec.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#ifndef KVCODEC_SCALAR_CODEC_ONCE
#define KVCODEC_SCALAR_CODEC_ONCE
namespace kvcodec {
namespace {

constexpr size_t kLaneTile = 4;
/// Elements that the planes of bits interleave.
constexpr size_t kGroup = 32;
/// Rows unpacked at a time.
constexpr size_t kChunk = 64;
constexpr size_t kMaxDim = ScalarFormat::kMaxDim;

constexpr int kStepsPerOctave = 12;
/// Scale byte of a vector whose elements have variance 1.
constexpr int kUnitScale = 128;
/// Scales tried around the one of the vector's variance.
constexpr int kFirstScale = -4;
constexpr int kLastScale = 3;

template <typename T>
T load_word(const uint8_t* from) {
    T word;
    std::memcpy(&word, from, sizeof(T));
    return word;
}

template <typename T>
void store_word(T word, uint8_t* to) {
    std::memcpy(to, &word, sizeof(T));
}

/// A word of n bytes whose high nibbles are empty, as n/2 bytes, and back.
uint32_t fold(uint64_t word) {
    return static_cast<uint32_t>(word | word >> 28);
}
uint16_t fold(uint32_t word) {
    return static_cast<uint16_t>(word | word >> 12);
}
uint64_t unfold(uint32_t word) {
    return (word & 0x0f0f0f0fU) | uint64_t{word >> 4 & 0x0f0f0f0fU} << 32;
}
uint32_t unfold(uint16_t word) {
    return (word & 0x0f0fU) | (word >> 4 & 0x0f0fU) << 16;
}

/// Two bits of each of 32 indices, from bit `shift` on.
uint64_t pack_pairs(const uint8_t* index, unsigned shift) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 4; ++i) {
        word |= (load_word<uint64_t>(index + 8 * i) >> shift & 0x0303030303030303U) << (2 * i);
    }
    return word;
}

/// Bit 2 of each of 32 indices.
uint32_t pack_singles(const uint8_t* index) {
    uint32_t word = 0;
    for (unsigned i = 0; i < 8; ++i) {
        word |= (load_word<uint32_t>(index + 4 * i) >> 2 & 0x01010101U) << i;
    }
    return word;
}

/// index: [dim] and zeros up to a whole group.
void pack_indices(const ScalarFormat& format, const uint8_t* index, uint8_t* code) {
    uint8_t* second = code + format.dim / 4;
    for (size_t i = 0; i < format.dim; i += kGroup, index += kGroup) {
        if (i + kGroup <= format.dim) {
            store_word(pack_pairs(index, 0), code + i / 4);
            if (format.bits == 3) {
                store_word(pack_singles(index), second + i / 8);
            } else if (format.bits == 4) {
                store_word(pack_pairs(index, 2), second + i / 4);
            }
        } else {
            store_word(fold(pack_pairs(index, 0)), code + i / 4);
            if (format.bits == 3) {
                store_word(fold(pack_singles(index)), second + i / 8);
            } else if (format.bits == 4) {
                store_word(fold(pack_pairs(index, 2)), second + i / 4);
            }
        }
    }
}

/// Rows of levels lie this far apart.
size_t level_stride(const ScalarFormat& format) {
    return (format.dim + kGroup - 1) / kGroup * kGroup;
}

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Wide = hn::CappedTag<float, 16>;
using Quad = hn::FixedTag<float, 4>;

/// Unnormalised Walsh-Hadamard transform of n >= 16 elements, a power of two.
void hadamard(float* HWY_RESTRICT x, size_t n) {
    const Quad quad;
    for (size_t i = 0; i < n; i += 16) {
        auto v0 = hn::Zero(quad);
        auto v1 = v0;
        auto v2 = v0;
        auto v3 = v0;
        hn::LoadInterleaved4(quad, x + i, v0, v1, v2, v3);
        const auto sum01 = hn::Add(v0, v1);
        const auto sum23 = hn::Add(v2, v3);
        const auto difference01 = hn::Sub(v0, v1);
        const auto difference23 = hn::Sub(v2, v3);
        hn::StoreInterleaved4(hn::Add(sum01, sum23), hn::Add(difference01, difference23), hn::Sub(sum01, sum23),
                              hn::Sub(difference01, difference23), quad, x + i);
    }
    const auto butterflies = [&](auto d, size_t half) HWY_ATTR {
        for (size_t i = 0; i < n; i += 2 * half) {
            for (size_t j = i; j < i + half; j += hn::Lanes(d)) {
                const auto a = hn::LoadU(d, x + j);
                const auto b = hn::LoadU(d, x + j + half);
                hn::StoreU(hn::Add(a, b), d, x + j);
                hn::StoreU(hn::Sub(a, b), d, x + j + half);
            }
        }
    };
    for (size_t half = 4; half < n; half *= 2) {
        if (half < hn::Lanes(Wide())) {
            butterflies(quad, half);
        } else {
            butterflies(Wide(), half);
        }
    }
}

void hadamard_blocks(float* x, size_t dim) {
    while (dim != 0) {
        const size_t block = std::bit_floor(dim);
        hadamard(x, block);
        x += block;
        dim -= block;
    }
}

/// y = x * signs.
void flip(const ScalarFormat& format, const float* HWY_RESTRICT x, float* HWY_RESTRICT y) {
    const Wide d;
    for (size_t i = 0; i < format.dim; i += hn::Lanes(d)) {
        hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::LoadU(d, format.signs.data() + i)), d, y + i);
    }
}

/// y = H x.
void rotate(const ScalarFormat& format, const float* x, float* y) {
    flip(format, x, y);
    hadamard_blocks(y, format.dim);
}

// --- encode ---

/// The quantiser in units of a level: magnitudes and the thresholds between them.
struct Quantiser {
    explicit Quantiser(const ScalarFormat& format) : size(format.bits == 8 ? 0 : size_t{1} << (format.bits - 1)) {
        for (size_t i = 0; i < size; ++i) {
            magnitude[i] = format.levels[i];
        }
        for (size_t i = 0; i + 1 < size; ++i) {
            threshold[i] = 0.5F * (magnitude[i] + magnitude[i + 1]);
        }
    }
    size_t size;  // 0: uniform, 8 bits
    std::array<float, 8> magnitude{};
    std::array<float, 8> threshold{};
};

/// Squared error of |y| / scale, in squared level units.
float quantisation_error(const Quantiser& quantiser, const float* HWY_RESTRICT y, size_t dim, float inverse_scale) {
    const Wide d;
    const auto factor = hn::Set(d, inverse_scale);
    auto error = hn::Zero(d);
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        const auto v = hn::Abs(hn::Mul(hn::LoadU(d, y + i), factor));
        auto level =
            quantiser.size == 0 ? hn::Min(hn::Round(v), hn::Set(d, 127.0F)) : hn::Set(d, quantiser.magnitude[0]);
        for (size_t k = 1; k < quantiser.size; ++k) {
            const auto magnitude = hn::Set(d, quantiser.magnitude[k]);
            level = hn::IfThenElse(hn::Gt(v, hn::Set(d, quantiser.threshold[k - 1])), magnitude, level);
        }
        const auto difference = hn::Sub(v, level);
        error = hn::MulAdd(difference, difference, error);
    }
    return hn::GetLane(hn::SumOfLanes(d, error));
}

void quantise(const Quantiser& quantiser, const float* HWY_RESTRICT y, size_t dim, float inverse_scale,
              uint8_t* HWY_RESTRICT index) {
    const Wide d;
    const hn::Rebind<uint8_t, Wide> bytes;
    const hn::Rebind<int32_t, Wide> integers;
    const auto factor = hn::Set(d, inverse_scale);
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        const auto v = hn::Mul(hn::LoadU(d, y + i), factor);
        if (quantiser.size == 0) {
            const auto level = hn::NearestInt(hn::Clamp(v, hn::Set(d, -127.0F), hn::Set(d, 127.0F)));
            hn::StoreU(hn::DemoteTo(bytes, hn::And(level, hn::Set(integers, 0xff))), bytes, index + i);
            continue;
        }
        const auto magnitude = hn::Abs(v);
        auto rank = hn::IfThenElseZero(hn::Lt(v, hn::Zero(d)), hn::Set(d, static_cast<float>(quantiser.size)));
        for (size_t k = 1; k < quantiser.size; ++k) {
            const auto above = hn::Gt(magnitude, hn::Set(d, quantiser.threshold[k - 1]));
            rank = hn::Add(rank, hn::IfThenElseZero(above, hn::Set(d, 1.0F)));
        }
        hn::StoreU(hn::DemoteTo(bytes, hn::ConvertTo(integers, rank)), bytes, index + i);
    }
}

/// Byte of the scale; 0 if zeros are as good.
size_t choose_scale(const ScalarFormat& format, const Quantiser& quantiser, const float* y) {
    const Wide d;
    auto squares = hn::Zero(d);
    for (size_t i = 0; i < format.dim; i += hn::Lanes(d)) {
        const auto v = hn::LoadU(d, y + i);
        squares = hn::MulAdd(v, v, squares);
    }
    float least = hn::GetLane(hn::SumOfLanes(d, squares));
    if (!std::isfinite(least) || least == 0.0F) {
        return 0;
    }
    const float octaves = 0.5F * std::log2(least / static_cast<float>(format.dim));
    const float gain_octaves = std::log2(format.gain);
    const int middle = kUnitScale + static_cast<int>(std::lround((octaves + gain_octaves) * kStepsPerOctave));
    size_t best = 0;
    for (int i = kFirstScale; i <= kLastScale; ++i) {
        const auto candidate = static_cast<size_t>(std::clamp(middle + i, 1, 255));
        const float scale = format.scales[candidate] / format.gain;
        const float error = quantisation_error(quantiser, y, format.dim, 1.0F / scale) * scale * scale;
        if (error < least) {
            least = error;
            best = candidate;
        }
    }
    return best;
}

void encode_rows(const ScalarFormat& format, const float* x, size_t n, uint8_t* code) {
    const Quantiser quantiser(format);
    HWY_ALIGN float y[kMaxDim];
    HWY_ALIGN uint8_t index[kMaxDim] = {};
    for (size_t row = 0; row < n; ++row, x += format.dim, code += format.code_bytes) {
        rotate(format, x, y);
        const size_t scale = choose_scale(format, quantiser, y);
        std::memset(code, 0, format.code_bytes);
        if (scale == 0) {
            continue;
        }
        code[format.code_bytes - 1] = static_cast<uint8_t>(scale);
        quantise(quantiser, y, format.dim, format.gain / format.scales[scale], index);
        if (format.bits == 8) {
            std::memcpy(code, index, format.dim);
        } else {
            pack_indices(format, index, code);
        }
    }
}

// --- attention ---

/// Levels [level_stride] of a code with 2 to 4 bits; those past dim are arbitrary.
template <unsigned kBits>
void unpack(const ScalarFormat& format, const uint8_t* HWY_RESTRICT code, int8_t* HWY_RESTRICT levels) {
    const hn::CappedTag<uint64_t, 4> d64;
    const hn::Repartition<uint32_t, decltype(d64)> d32;
    const hn::Repartition<int8_t, decltype(d64)> d8;
    HWY_ALIGN static constexpr uint64_t kPairShifts[4] = {0, 2, 4, 6};
    HWY_ALIGN static constexpr uint32_t kSingleShifts[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const auto two_bits = hn::Set(d64, 0x0303030303030303U);
    const auto one_bit = hn::Set(d32, 0x01010101U);
    const auto level_of_index = hn::LoadDup128(d8, format.levels.data());
    const uint8_t* HWY_RESTRICT second = code + format.dim / 4;
    for (size_t i = 0; i < format.dim; i += kGroup) {
        const bool whole = i + kGroup <= format.dim;
        const auto pairs = [&](const uint8_t* plane) {
            return whole ? load_word<uint64_t>(plane + i / 4) : unfold(load_word<uint32_t>(plane + i / 4));
        };
        const auto singles = [&](const uint8_t* plane) {
            return whole ? load_word<uint32_t>(plane + i / 8) : unfold(load_word<uint16_t>(plane + i / 8));
        };
        const auto first_word = hn::Set(d64, pairs(code));
        for (size_t part = 0; part < 4; part += hn::Lanes(d64)) {
            const auto shifts = hn::Load(d64, kPairShifts + part);
            auto index = hn::And(hn::Shr(first_word, shifts), two_bits);
            if constexpr (kBits == 3) {
                const auto bit = hn::Shr(hn::Set(d32, singles(second)), hn::Load(d32, kSingleShifts + 2 * part));
                index = hn::Or(index, hn::ShiftLeft<2>(hn::BitCast(d64, hn::And(bit, one_bit))));
            } else if constexpr (kBits == 4) {
                const auto high = hn::And(hn::Shr(hn::Set(d64, pairs(second)), shifts), two_bits);
                index = hn::Or(index, hn::ShiftLeft<2>(high));
            }
            hn::StoreU(hn::TableLookupBytes(level_of_index, hn::BitCast(d8, index)), d8, levels + i + 8 * part);
        }
    }
}

void unpack_row(const ScalarFormat& format, const uint8_t* code, int8_t* levels) {
    switch (format.bits) {
        case 2:
            return unpack<2>(format, code, levels);
        case 3:
            return unpack<3>(format, code, levels);
        case 4:
            return unpack<4>(format, code, levels);
        default:
            std::memcpy(levels, code, format.dim);
    }
}

/// A few rows as levels, with their scales.
struct Chunk {
    size_t size = 0;
    std::array<float, kChunk> scale;
    HWY_ALIGN std::array<int8_t, kChunk * kMaxDim> levels;

    void load(const ScalarFormat& format, const uint8_t* codes, const uint16_t* rows, size_t n) {
        size = n;
        for (size_t i = 0; i < n; ++i) {
            const uint8_t* code = codes + rows[i] * format.code_bytes;
            scale[i] = format.scales[code[format.code_bytes - 1]];
            unpack_row(format, code, levels.data() + i * level_stride(format));
        }
    }
};

template <class D>
hn::Vec<D> load_levels(D d, const int8_t* levels) {
    const hn::Rebind<int8_t, D> bytes;
    const hn::Rebind<int32_t, D> integers;
    return hn::ConvertTo(d, hn::PromoteTo(integers, hn::LoadU(bytes, levels)));
}

/// Sum of all blocks of four.
template <class D>
hn::Vec<Quad> sum_quads(D d, hn::Vec<D> v) {
    if constexpr (hn::MaxLanes(d) == 4) {
        return v;
    } else {
        const hn::Half<D> half;
        return sum_quads(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    }
}

/// The sums of four vectors.
template <class D>
hn::Vec<Quad> sums_of_four(D d, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> c, hn::Vec<D> e) {
    const hn::Repartition<uint64_t, D> d64;
    const auto ab = hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
    const auto ce = hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
    const auto lower = hn::BitCast(d, hn::InterleaveLower(d64, ab, ce));
    const auto upper = hn::BitCast(d, hn::InterleaveUpper(d64, ab, ce));
    return sum_quads(d, hn::Add(lower, upper));
}

/// Four lanes of table [dim, lanes] as four rows [4, dim].
void transpose_tile(const float* HWY_RESTRICT table, size_t lanes, size_t dim, float* HWY_RESTRICT tile) {
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

/// Two rows of levels times four lanes tile [4, dim].
void score_pair(const float* HWY_RESTRICT tile, size_t dim, const int8_t* HWY_RESTRICT levels0,
                const int8_t* HWY_RESTRICT levels1, float scale0, float scale1, float* s0, float* s1) {
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

void score_rows(const ScalarFormat& format, const float* table, size_t lanes, const uint8_t* codes,
                std::span<const uint16_t> rows, float* s) {
    Chunk chunk;
    HWY_ALIGN float tile[kLaneTile * kMaxDim];
    const size_t stride = level_stride(format);
    for (size_t begin = 0; begin < rows.size(); begin += kChunk, s += kChunk * lanes) {
        chunk.load(format, codes, rows.data() + begin, std::min(kChunk, rows.size() - begin));
        for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
            transpose_tile(table + lane, lanes, format.dim, tile);
            for (size_t i = 0; i < chunk.size; i += 2) {
                const size_t next = std::min(i + 1, chunk.size - 1);
                score_pair(tile, format.dim, &chunk.levels[i * stride], &chunk.levels[next * stride], chunk.scale[i],
                           chunk.scale[next], s + i * lanes + lane, s + next * lanes + lane);
            }
        }
    }
}

/// Elements [first, first + 2 * Lanes) of acc, four lanes, += weights [rows, 4] times levels.
void accumulate_tile(const Chunk& chunk, size_t stride, const float* HWY_RESTRICT weights, size_t first, size_t dim,
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
    const int8_t* HWY_RESTRICT levels = chunk.levels.data() + first;
    for (size_t i = 0; i < chunk.size; ++i, levels += stride, weights += kLaneTile) {
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
    for (size_t i = 0; i < std::min(2 * width, dim - first); ++i) {
        float* HWY_RESTRICT out = acc + (first + i) * lanes;
        hn::StoreU(hn::Add(hn::LoadU(quad, out), hn::Load(quad, sums + i * kLaneTile)), quad, out);
    }
}

void accumulate_rows(const ScalarFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                     std::span<const uint16_t> rows, float* acc) {
    const Quad quad;
    Chunk chunk;
    HWY_ALIGN float weights[kChunk * kLaneTile];
    for (size_t begin = 0; begin < rows.size(); begin += kChunk, p += kChunk * lanes) {
        chunk.load(format, codes, rows.data() + begin, std::min(kChunk, rows.size() - begin));
        for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
            for (size_t i = 0; i < chunk.size; ++i) {
                const auto scale = hn::Set(quad, chunk.scale[i]);
                hn::Store(hn::Mul(hn::LoadU(quad, p + i * lanes + lane), scale), quad, weights + i * kLaneTile);
            }
            for (size_t i = 0; i < format.dim; i += 2 * hn::Lanes(Wide())) {
                accumulate_tile(chunk, level_stride(format), weights, i, format.dim, acc + lane, lanes);
            }
        }
    }
}

void decode_rows(const ScalarFormat& format, const uint8_t* code, size_t n, float* x) {
    const Wide d;
    HWY_ALIGN int8_t levels[kMaxDim];
    HWY_ALIGN float y[kMaxDim];
    for (size_t row = 0; row < n; ++row, code += format.code_bytes, x += format.dim) {
        unpack_row(format, code, levels);
        const auto scale = hn::Set(d, format.scales[code[format.code_bytes - 1]]);
        for (size_t i = 0; i < format.dim; i += hn::Lanes(d)) {
            hn::Store(hn::Mul(load_levels(d, levels + i), scale), d, y + i);
        }
        hadamard_blocks(y, format.dim);
        flip(format, y, x);
    }
}

void prepare_rows(const ScalarFormat& format, const float* q, size_t lanes, size_t begin, size_t end, float* table) {
    HWY_ALIGN float y[kLaneTile * kMaxDim];
    for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
        for (size_t k = 0; k < kLaneTile; ++k) {
            rotate(format, q + (lane + k) * format.dim, y + k * format.dim);
        }
        for (size_t i = begin; i < end; ++i) {
            for (size_t k = 0; k < kLaneTile; ++k) {
                table[i * lanes + lane + k] = y[k * format.dim + i];
            }
        }
    }
}

void finish_elements(const ScalarFormat& format, const float* acc, size_t lanes, size_t begin, size_t end, float* out) {
    HWY_ALIGN float y[kLaneTile * kMaxDim];
    for (size_t lane = 0; lane < lanes; lane += kLaneTile) {
        transpose_tile(acc + lane, lanes, format.dim, y);
        for (size_t k = 0; k < kLaneTile; ++k) {
            hadamard_blocks(y + k * format.dim, format.dim);
            for (size_t i = begin; i < end; ++i) {
                out[(lane + k) * format.dim + i] += y[k * format.dim + i] * format.signs[i];
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

HWY_EXPORT(encode_rows);
HWY_EXPORT(decode_rows);
HWY_EXPORT(prepare_rows);
HWY_EXPORT(score_rows);
HWY_EXPORT(accumulate_rows);
HWY_EXPORT(finish_elements);

/// Positive levels of the quantiser with least squared error for a unit Gaussian (Lloyd-Max; J. Max 1960, table I).
/// With 8 bits levels are uniform, and only the largest one is given.
std::vector<double> positive_levels(unsigned bits) {
    switch (bits) {
        case 2:
            return {0.452780, 1.510417};
        case 3:
            return {0.245094, 0.756006, 1.343909, 2.151946};
        case 4:
            return {0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590};
        case 8:
            return {3.5};
        default:
            throw Error("the scalar codec has 2, 3, 4 or 8 bits an element, not " + std::to_string(bits));
    }
}

const uint8_t* bytes(const std::byte* codes) {
    return reinterpret_cast<const uint8_t*>(codes);
}

}  // namespace

double ScalarCodec::expected_loss(unsigned bits) {
    switch (bits) {
        case 2:
            return 0.1175;
        case 3:
            return 0.03454;
        case 4:
            return 0.009497;
        default:
            return 1e-4;
    }
}

ScalarCodec::ScalarCodec(size_t dim, unsigned bits, float unbias) {
    if (dim == 0 || dim % 16 != 0 || dim > ScalarFormat::kMaxDim) {
        throw Error("the scalar codec needs a head size that is a multiple of 16 up to " +
                    std::to_string(ScalarFormat::kMaxDim) + ", not " + std::to_string(dim));
    }
    format_.dim = dim;
    format_.bits = bits;
    format_.gain = unbias_gain(expected_loss(bits), unbias);
    format_.code_bytes = bytes_of(dim, bits);
    const std::vector<double> positive = positive_levels(bits);
    const double unit = positive.back() / 127.0;
    if (bits != 8) {
        for (size_t i = 0; i < positive.size(); ++i) {
            const auto level = static_cast<int8_t>(std::lround(positive[i] / unit));
            format_.levels[i] = level;
            format_.levels[positive.size() + i] = static_cast<int8_t>(-level);
        }
    }
    for (int i = 1; i < 256; ++i) {
        const double octaves = static_cast<double>(i - kUnitScale) / kStepsPerOctave;
        format_.scales[static_cast<size_t>(i)] = static_cast<float>(std::exp2(octaves) * unit);
    }
    std::mt19937 rng(0x6b76);  // part of the format: codes are read with the signs they were written with
    for (size_t begin = 0; begin < dim; begin += std::bit_floor(dim - begin)) {
        const float size = 1.0F / std::sqrt(static_cast<float>(std::bit_floor(dim - begin)));
        for (size_t i = 0; i < std::bit_floor(dim - begin); ++i) {
            format_.signs.push_back(rng() % 2 == 0 ? size : -size);
        }
    }
}

std::string ScalarCodec::describe() const {
    return "scalar, " + std::to_string(format_.bits) + " bits, rotated";
}

size_t ScalarCodec::fixed_bytes() const {
    return sizeof(format_) + format_.signs.size() * sizeof(float);
}

void ScalarCodec::encode(const float* x, size_t n, std::byte* codes) const {
    HWY_DYNAMIC_DISPATCH(encode_rows)(format_, x, n, reinterpret_cast<uint8_t*>(codes));
}

void ScalarCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    HWY_DYNAMIC_DISPATCH(decode_rows)(format_, bytes(codes) + first * code_bytes(), n, x);
}

void ScalarCodec::prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const {
    HWY_DYNAMIC_DISPATCH(prepare_rows)(format_, q, lanes, begin, end, table);
}

void ScalarCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                        float* s) const {
    HWY_DYNAMIC_DISPATCH(score_rows)(format_, table, lanes, bytes(codes), rows, s);
}

void ScalarCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                             float* acc) const {
    HWY_DYNAMIC_DISPATCH(accumulate_rows)(format_, p, lanes, bytes(codes), rows, acc);
}

void ScalarCodec::finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const {
    HWY_DYNAMIC_DISPATCH(finish_elements)(format_, acc, lanes, begin, end, out);
}

}  // namespace kvcodec
#endif
