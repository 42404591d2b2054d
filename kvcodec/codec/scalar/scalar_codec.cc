#include "kvcodec/codec/scalar/scalar_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "kvcodec/codec/shrinkage.h"
#include "kvcodec/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/scalar/scalar_codec.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#include "kvcodec/codec/level_rows-inl.h"
#include "kvcodec/codec/scalar/byte_products.h"

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

constexpr int kStepsPerOctave = ScalarFormat::kStepsPerOctave;
/// Scale byte of a vector whose elements have variance 1.
constexpr int kUnitScale = 128;
/// First of the scales tried around the one of the vector's variance: with 8 bits, and on the trellis.
constexpr int kFirstUniform = -4;
constexpr int kLastUniform = 3;
constexpr int kFirstTrellis = -2;

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

/// One bit of each of 32 indices.
uint32_t pack_singles(const uint8_t* index, unsigned shift) {
    uint32_t word = 0;
    for (unsigned i = 0; i < 8; ++i) {
        word |= (load_word<uint32_t>(index + 4 * i) >> shift & 0x01010101U) << i;
    }
    return word;
}

/// Where the planes of a code start.
struct Planes {
    Planes(const ScalarFormat& format)
        : pairs(format.dim / 8), singles(format.bits == 2 ? format.dim / 8 : format.dim * 3 / 8) {}
    size_t pairs;    // 3 and 4 bits
    size_t singles;  // 2 and 4 bits
};

/// index: [dim] and zeros up to a whole group.
void pack_indices(const ScalarFormat& format, const uint8_t* index, uint8_t* code) {
    const Planes planes(format);
    for (size_t i = 0; i < format.dim; i += kGroup, index += kGroup) {
        const bool whole = i + kGroup <= format.dim;
        const auto store_singles = [&](unsigned shift, uint8_t* plane) {
            const uint32_t word = pack_singles(index, shift);
            whole ? store_word(word, plane + i / 8) : store_word(fold(word), plane + i / 8);
        };
        store_singles(0, code);
        if (format.bits >= 3) {
            const uint64_t word = pack_pairs(index, 1);
            whole ? store_word(word, code + planes.pairs + i / 4) : store_word(fold(word), code + planes.pairs + i / 4);
        }
        if (format.bits != 3) {
            store_singles(format.bits - 1, code + planes.singles);
        }
    }
}

/// The elements in the order of the bits of a plane that holds one of each.
std::vector<uint16_t> order_of_singles(size_t dim) {
    std::vector<uint16_t> order;
    for (size_t begin = 0; begin < dim; begin += kGroup) {
        const bool whole = begin + kGroup <= dim;
        for (size_t bit = 0; bit < (whole ? kGroup : kGroup / 2); ++bit) {
            const size_t byte = bit / 8;
            const size_t place = bit % 8;
            const size_t element = whole || place < 4 ? 4 * place + byte : 4 * (place - 4) + byte + 2;
            order.push_back(static_cast<uint16_t>(begin + element));
        }
    }
    return order;
}

/// Byte of the scale for a vector of this energy.
int scale_near(const ScalarFormat& format, float energy) {
    const float octaves = 0.5F * std::log2(energy / static_cast<float>(format.dim)) + std::log2(format.gain);
    return kUnitScale + static_cast<int>(std::lround(octaves * kStepsPerOctave));
}

/// Byte of one of the scales that are tried on the trellis.
uint8_t scale_byte(int middle, size_t candidate) {
    return static_cast<uint8_t>(std::clamp(middle + kFirstTrellis + static_cast<int>(candidate), 1, 255));
}

/// Rows of levels lie this far apart.
size_t stride_of(const ScalarFormat& format) {
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
void flip(const ScalarFormat& format, const float* x, float* y) {
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

/// Squared error of y / scale with uniform levels, in squared level units.
float uniform_error(const float* HWY_RESTRICT y, size_t dim, float inverse_scale) {
    const Wide d;
    const auto factor = hn::Set(d, inverse_scale);
    auto error = hn::Zero(d);
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        const auto v = hn::Abs(hn::Mul(hn::LoadU(d, y + i), factor));
        const auto difference = hn::Sub(v, hn::Min(hn::Round(v), hn::Set(d, 127.0F)));
        error = hn::MulAdd(difference, difference, error);
    }
    return hn::GetLane(hn::SumOfLanes(d, error));
}

void quantise_uniformly(const float* HWY_RESTRICT y, size_t dim, float inverse_scale, uint8_t* HWY_RESTRICT code) {
    const Wide d;
    const hn::Rebind<uint8_t, Wide> bytes;
    const hn::Rebind<int32_t, Wide> integers;
    const auto factor = hn::Set(d, inverse_scale);
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        const auto v = hn::Mul(hn::LoadU(d, y + i), factor);
        const auto level = hn::NearestInt(hn::Clamp(v, hn::Set(d, -127.0F), hn::Set(d, 127.0F)));
        hn::StoreU(hn::DemoteTo(bytes, hn::And(level, hn::Set(integers, 0xff))), bytes, code + i);
    }
}

float energy_of(const float* HWY_RESTRICT y, size_t dim) {
    const Wide d;
    auto squares = hn::Zero(d);
    for (size_t i = 0; i < dim; i += hn::Lanes(d)) {
        const auto v = hn::LoadU(d, y + i);
        squares = hn::MulAdd(v, v, squares);
    }
    return hn::GetLane(hn::SumOfLanes(d, squares));
}

void encode_uniformly(const ScalarFormat& format, const float* x, size_t n, uint8_t* code) {
    HWY_ALIGN float y[kMaxDim];
    for (size_t row = 0; row < n; ++row, x += format.dim, code += format.code_bytes) {
        rotate(format, x, y);
        std::memset(code, 0, format.code_bytes);
        float least = energy_of(y, format.dim);
        if (!std::isfinite(least) || least == 0.0F) {
            continue;
        }
        const int middle = scale_near(format, least);
        size_t best = 0;
        for (int i = kFirstUniform; i <= kLastUniform; ++i) {
            const auto candidate = static_cast<size_t>(std::clamp(middle + i, 1, 255));
            const float scale = format.scales[candidate] / format.gain;
            const float error = uniform_error(y, format.dim, 1.0F / scale) * scale * scale;
            if (error < least) {
                least = error;
                best = candidate;
            }
        }
        if (best != 0) {
            quantise_uniformly(y, format.dim, format.gain / format.scales[best], code);
            code[format.code_bytes - 1] = static_cast<uint8_t>(best);
        }
    }
}

/// y [n, dim]: rotated rows in the order of the trellis; returns their energies.
void prepare_trellis(const ScalarFormat& format, const float* x, size_t n, float* y, float* energy) {
    HWY_ALIGN float rotated[kMaxDim];
    for (size_t row = 0; row < n; ++row, x += format.dim, y += format.dim) {
        rotate(format, x, rotated);
        energy[row] = energy_of(rotated, format.dim);
        for (size_t t = 0; t < format.dim; ++t) {
            y[t] = rotated[format.order[t]];
        }
    }
}

// --- attention ---

/// Levels [stride_of] of a code with 2 to 4 bits; those past dim are arbitrary.
template <unsigned kBits>
void unpack(const ScalarFormat& format, const uint8_t* HWY_RESTRICT code, int8_t* HWY_RESTRICT levels) {
    const hn::CappedTag<uint32_t, 8> d32;
    const hn::Repartition<uint64_t, decltype(d32)> d64;
    const hn::Repartition<int8_t, decltype(d32)> d8;
    HWY_ALIGN static constexpr uint64_t kPairShifts[4] = {0, 2, 4, 6};
    HWY_ALIGN static constexpr uint32_t kSingleShifts[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const auto one_bit = hn::Set(d32, 0x01010101U);
    const auto two_bits = hn::Set(d64, 0x0303030303030303U);
    const auto level_of_place = hn::LoadDup128(d8, format.levels.data());
    const auto level_of_high_place = hn::LoadDup128(d8, format.levels.data() + 16);
    const Planes planes(format);
    unsigned history = 0;
    for (size_t i = 0; i < format.dim; i += kGroup) {
        uint32_t low = 0, high = 0, rest = 0;
        uint64_t pair = 0;
        if (i + kGroup <= format.dim) {
            const auto path = load_word<uint32_t>(code + i / 8);
            low = Trellis::low(path, history);
            high = Trellis::high(path, history);
            history = Trellis::history_after(path);
            if constexpr (kBits >= 3) {
                pair = load_word<uint64_t>(code + planes.pairs + i / 4);
            }
            if constexpr (kBits != 3) {
                rest = load_word<uint32_t>(code + planes.singles + i / 8);
            }
        } else {
            const auto path = load_word<uint16_t>(code + i / 8);
            low = unfold(Trellis::low(path, history));
            high = unfold(Trellis::high(path, history));
            if constexpr (kBits >= 3) {
                pair = unfold(load_word<uint32_t>(code + planes.pairs + i / 4));
            }
            if constexpr (kBits != 3) {
                rest = unfold(load_word<uint16_t>(code + planes.singles + i / 8));
            }
        }
        for (size_t part = 0; part < 8; part += hn::Lanes(d32)) {
            const auto shifts = hn::Load(d32, kSingleShifts + part);
            const auto singles = [&](uint32_t word) { return hn::And(hn::Shr(hn::Set(d32, word), shifts), one_bit); };
            auto place = hn::Or(singles(low), hn::ShiftLeft<1>(singles(high)));
            if constexpr (kBits >= 3) {
                const auto two = hn::And(hn::Shr(hn::Set(d64, pair), hn::Load(d64, kPairShifts + part / 2)), two_bits);
                place = hn::Or(place, hn::ShiftLeft<2>(hn::BitCast(d32, two)));
            } else {
                place = hn::Or(place, hn::ShiftLeft<2>(singles(rest)));
            }
            auto level = hn::TableLookupBytes(level_of_place, hn::BitCast(d8, place));
            if constexpr (kBits == 4) {
                const auto is_high = hn::Ne(hn::BitCast(d8, singles(rest)), hn::Zero(d8));
                const auto high_level = hn::TableLookupBytes(level_of_high_place, hn::BitCast(d8, place));
                level = hn::IfThenElse(is_high, high_level, level);
            }
            hn::StoreU(level, d8, levels + i + 4 * part);
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

static_assert(kMaxDim <= level_rows::kMaxDim && kChunk == level_rows::kMaxRows);
static_assert(kGroup % level_rows::kStrideMultiple == 0);

/// A few rows as levels, with their scales.
struct Chunk {
    std::array<float, kChunk> scale;
    HWY_ALIGN std::array<int8_t, kChunk * kMaxDim> levels;

    level_rows::LevelRows load(const ScalarFormat& format, const uint8_t* codes, std::span<const uint16_t> rows) {
        const size_t stride = stride_of(format);
        for (size_t i = 0; i < rows.size(); ++i) {
            const uint8_t* code = codes + rows[i] * format.code_bytes;
            scale[i] = format.scales[code[format.code_bytes - 1]];
            unpack_row(format, code, levels.data() + i * stride);
        }
        return {levels.data(), stride, scale.data(), rows.size(), format.dim};
    }
};

void score_rows(const ScalarFormat& format, const float* table, size_t lanes, const uint8_t* codes,
                std::span<const uint16_t> rows, float* s) {
    level_rows::score_all<Chunk>(format, table, lanes, codes, rows, s);
}

void accumulate_rows(const ScalarFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                     std::span<const uint16_t> rows, float* acc) {
    level_rows::accumulate_all<Chunk>(format, p, lanes, codes, rows, acc);
}

void unpack_rows(const ScalarFormat& format, const uint8_t* code, size_t n, int8_t* levels, float* scale) {
    for (size_t row = 0; row < n; ++row, code += format.code_bytes, levels += stride_of(format)) {
        unpack_row(format, code, levels);
        scale[row] = format.scales[code[format.code_bytes - 1]];
    }
}

void decode_rows(const ScalarFormat& format, const uint8_t* code, size_t n, float* x) {
    const Wide d;
    HWY_ALIGN int8_t levels[kMaxDim];
    for (size_t row = 0; row < n; ++row, code += format.code_bytes, x += format.dim) {
        float scale = 0.0F;
        unpack_rows(format, code, 1, levels, &scale);
        for (size_t i = 0; i < format.dim; i += hn::Lanes(d)) {
            hn::StoreU(hn::Mul(level_rows::load_levels(d, levels + i), hn::Set(d, scale)), d, x + i);
        }
        hadamard_blocks(x, format.dim);
        flip(format, x, x);
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
        level_rows::transpose_tile(acc + lane, lanes, format.dim, y);
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

HWY_EXPORT(encode_uniformly);
HWY_EXPORT(prepare_trellis);
HWY_EXPORT(unpack_rows);
HWY_EXPORT(decode_rows);
HWY_EXPORT(prepare_rows);
HWY_EXPORT(score_rows);
HWY_EXPORT(accumulate_rows);
HWY_EXPORT(finish_elements);

/// The largest level of 8 bits, in deviations.
constexpr double kUniformRange = 3.5;

const uint8_t* bytes(const std::byte* codes) {
    return reinterpret_cast<const uint8_t*>(codes);
}

}  // namespace

double ScalarCodec::expected_loss(unsigned bits) {
    return bits == 8 ? 1e-4 : Trellis::levels(bits).loss;
}

ScalarCodec::ScalarCodec(size_t dim, unsigned bits, float unbias) : trellis_({}, {}) {
    if (dim == 0 || dim % 16 != 0 || dim > ScalarFormat::kMaxDim) {
        throw Error("the scalar codec needs a head size that is a multiple of 16 up to " +
                    std::to_string(ScalarFormat::kMaxDim) + ", not " + std::to_string(dim));
    }
    if (std::ranges::find(kBits, bits) == kBits.end()) {
        throw Error("the scalar codec has 2, 3, 4 or 8 bits an element, not " + std::to_string(bits));
    }
    format_.dim = dim;
    format_.bits = bits;
    format_.gain = unbias_gain(expected_loss(bits), unbias);
    format_.code_bytes = bytes_of(dim, bits);
#if HWY_ARCH_X86
    has_byte_products_ = byte_products::serve(format_);
#endif
    double unit = kUniformRange / 127.0;
    if (bits != 8) {
        const Trellis::Levels& levels = Trellis::levels(bits);
        unit = static_cast<double>(levels.unit);
        std::copy_n(levels.level.begin(), size_t{2} << bits, format_.levels.begin());
        for (unsigned key = 0; key < format_.level_of_key.size(); ++key) {
            const unsigned history = key & ((1U << Trellis::kHistory) - 1U);
            const unsigned path = key >> Trellis::kHistory;
            const unsigned rest = path >> 1 & ((1U << (bits - 1)) - 1U);
            const unsigned subset = (Trellis::low(path, history) & 1U) | (Trellis::high(path, history) & 1U) << 1;
            format_.level_of_key[key] = format_.levels[subset | rest << 2];
        }
        format_.order = order_of_singles(dim);
        trellis_ = TrellisEncoder(std::vector<uint8_t>(dim, static_cast<uint8_t>(bits)), std::vector<float>(dim, 1.0F));
    }
    for (int i = 0; i < kStepsPerOctave; ++i) {
        const double octaves = static_cast<double>(i - kUnitScale) / kStepsPerOctave;
        format_.first_octave[static_cast<size_t>(i)] = static_cast<float>(std::exp2(octaves) * unit);
    }
    for (int i = 1; i < 256; ++i) {
        const float first = format_.first_octave[static_cast<size_t>(i % kStepsPerOctave)];
        format_.scales[static_cast<size_t>(i)] = std::ldexp(first, i / kStepsPerOctave);
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
    return sizeof(format_) + format_.signs.size() * sizeof(float) + format_.order.size() * sizeof(uint16_t) +
           trellis_.n_elements() * (sizeof(uint8_t) + sizeof(float));
}

void ScalarCodec::encode(const float* x, size_t n, std::byte* codes) const {
    auto* code = reinterpret_cast<uint8_t*>(codes);
    if (format_.bits == 8) {
        HWY_DYNAMIC_DISPATCH(encode_uniformly)(format_, x, n, code);
        return;
    }
    constexpr size_t kAtOnce = 16;
    constexpr size_t kScales = TrellisEncoder::kScales;
    std::vector<float> y(std::min(kAtOnce, n) * format_.dim);
    std::vector<uint8_t> trellis_index(y.size());
    std::array<float, kAtOnce> energy;
    std::array<float, kAtOnce * kScales> scales;
    std::array<TrellisEncoder::Choice, kAtOnce> choice;
    std::array<uint8_t, kMaxDim + kGroup> index{};
    const float unit = Trellis::levels(format_.bits).unit;
    for (size_t first = 0; first < n; first += kAtOnce) {
        const size_t size = std::min(kAtOnce, n - first);
        HWY_DYNAMIC_DISPATCH(prepare_trellis)(format_, x + first * format_.dim, size, y.data(), energy.data());
        std::array<int, kAtOnce> middle{};
        for (size_t row = 0; row < size; ++row) {
            const bool usable = std::isfinite(energy[row]) && energy[row] != 0.0F;
            if (!usable) {  // decodes to zero whatever the trellis finds
                std::fill_n(&y[row * format_.dim], format_.dim, 0.0F);
                energy[row] = 0.0F;
            }
            middle[row] = usable ? scale_near(format_, energy[row]) : kUnitScale;
            for (size_t s = 0; s < kScales; ++s) {
                scales[row * kScales + s] = format_.scales[scale_byte(middle[row], s)] / format_.gain / unit;
            }
        }
        trellis_.encode(y.data(), size, scales.data(), trellis_index.data(), choice.data());
        for (size_t row = 0; row < size; ++row, code += format_.code_bytes) {
            std::memset(code, 0, format_.code_bytes);
            if (choice[row].error < energy[row]) {
                for (size_t t = 0; t < format_.dim; ++t) {
                    index[format_.order[t]] = trellis_index[row * format_.dim + t];
                }
                pack_indices(format_, index.data(), code);
                code[format_.code_bytes - 1] = scale_byte(middle[row], choice[row].scale);
            }
        }
    }
}

void ScalarCodec::decode(const std::byte* codes, size_t first, size_t n, float* x) const {
    HWY_DYNAMIC_DISPATCH(decode_rows)(format_, bytes(codes) + first * code_bytes(), n, x);
}

void ScalarCodec::unpack(const std::byte* codes, size_t first, size_t n, int8_t* levels, float* scale) const {
    HWY_DYNAMIC_DISPATCH(unpack_rows)(format_, bytes(codes) + first * code_bytes(), n, levels, scale);
}

size_t ScalarCodec::level_stride() const {
    return stride_of(format_);
}

void ScalarCodec::prepare(const float* q, size_t lanes, size_t begin, size_t end, float* table) const {
    HWY_DYNAMIC_DISPATCH(prepare_rows)(format_, q, lanes, begin, end, table);
}

void ScalarCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                        float* s) const {
    if (has_byte_products_) {
        std::vector<std::byte> rounded(rounded_bytes(lanes));
        round(table, lanes, rounded.data());
        return score_rounded(rounded.data(), lanes, codes, rows, s);
    }
    HWY_DYNAMIC_DISPATCH(score_rows)(format_, table, lanes, bytes(codes), rows, s);
}

#if HWY_ARCH_X86
size_t ScalarCodec::rounded_bytes(size_t lanes) const {
    return has_byte_products_ ? byte_products::rounded_bytes(format_, lanes) : 0;
}

void ScalarCodec::round(const float* table, size_t lanes, std::byte* rounded) const {
    byte_products::round(format_, table, lanes, rounded);
}

void ScalarCodec::score_rounded(const std::byte* rounded, size_t lanes, const std::byte* codes,
                                std::span<const uint16_t> rows, float* s) const {
    byte_products::score(format_, rounded, lanes, bytes(codes), rows, s);
}
#else
size_t ScalarCodec::rounded_bytes(size_t /*lanes*/) const {
    return 0;
}

void ScalarCodec::round(const float* /*table*/, size_t /*lanes*/, std::byte* /*rounded*/) const {}

void ScalarCodec::score_rounded(const std::byte* /*rounded*/, size_t /*lanes*/, const std::byte* /*codes*/,
                                std::span<const uint16_t> /*rows*/, float* /*s*/) const {}
#endif

void ScalarCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                             float* acc) const {
#if HWY_ARCH_X86
    if (has_byte_products_) {
        return byte_products::accumulate(format_, p, lanes, bytes(codes), rows, acc);
    }
#endif
    HWY_DYNAMIC_DISPATCH(accumulate_rows)(format_, p, lanes, bytes(codes), rows, acc);
}

void ScalarCodec::finish(const float* acc, size_t lanes, size_t begin, size_t end, float* out) const {
    HWY_DYNAMIC_DISPATCH(finish_elements)(format_, acc, lanes, begin, end, out);
}

}  // namespace kvcodec
#endif
