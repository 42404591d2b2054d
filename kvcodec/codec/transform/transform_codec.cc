#include "kvcodec/codec/transform/transform_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numbers>
#include <numeric>
#include <optional>

#include "kvcodec/attend/gemm.h"
#include "kvcodec/codec/shrinkage.h"
#include "kvcodec/codec/transform/inverse.h"
#include "kvcodec/error.h"
#include "kvcodec/target.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/transform/transform_codec.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#include "kvcodec/codec/level_rows-inl.h"

#ifndef KVCODEC_TRANSFORM_CODEC_ONCE
#define KVCODEC_TRANSFORM_CODEC_ONCE
namespace kvcodec {
namespace {

constexpr size_t kGroup = TransformFormat::kGroup;
constexpr size_t kMaxBits = TransformFormat::kMaxBits;
constexpr size_t kMaxDim = TransformFormat::kMaxDim;
/// Rows coded or decoded at a time.
constexpr size_t kChunk = 64;

void pack_indices(const TransformFormat& format, const uint8_t* index, uint8_t* code) {
    for (size_t plane = 0; plane < kMaxBits; code += format.plane_bytes[plane], ++plane) {
        for (size_t i = 0; i < kGroup * format.plane_bytes[plane]; ++i) {
            code[i / 8] = static_cast<uint8_t>(code[i / 8] | (index[i] >> plane & 1) << (i % 8));
        }
    }
}

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kLookup = TransformFormat::kLookup;
constexpr size_t kWideLookup = TransformFormat::kWideLookup;

/// Levels of kLookup components, from their places on top of where their tables start.
template <class D>
HWY_INLINE hn::Vec<D> look_up(D bytes, const TransformFormat::Lookup& lookup, size_t part, hn::Vec<D> place) {
    const int8_t* HWY_RESTRICT table = lookup.tables.data() + part;
    if (lookup.tables.size() == kLookup) {
        return hn::TableLookupBytes(hn::LoadU(bytes, table), place);
    }
    const hn::RebindToUnsigned<D> unsigned_bytes;
    auto levels = hn::Zero(bytes);
    for (size_t i = 0; i < lookup.tables.size() / kLookup; ++i) {
        // Places within this table become 0x70 to 0x7f, all others have the highest bit set.
        const auto of_table =
            hn::Xor(hn::BitCast(unsigned_bytes, place), hn::Set(unsigned_bytes, static_cast<uint8_t>(16 * i)));
        const auto marked = hn::SaturatedAdd(of_table, hn::Set(unsigned_bytes, uint8_t{0x70}));
        const auto index = hn::BitCast(bytes, hn::And(marked, hn::Set(unsigned_bytes, uint8_t{0x8f})));
        levels = hn::Or(levels, hn::TableLookupBytesOr0(hn::LoadU(bytes, table + i * kLookup), index));
    }
    return levels;
}

// Newer AVX-512 chooses among 128 bytes in one instruction (VBMI). Highway has no target for it here, and an intrinsic
// would need one too.
#undef KVCODEC_BYTE_INSTRUCTIONS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define KVCODEC_BYTE_INSTRUCTIONS 1
namespace byte_instructions {

/// Bytes of the table [128] at the low seven bits of each index.
HWY_INLINE __m512i choose(__m512i index, __m512i lower, __m512i upper) {
    asm("vpermi2b %2, %1, %0" : "+v"(index) : "v"(lower), "v"(upper));
    return index;
}

void unpack_levels(const TransformFormat& format, const uint8_t* HWY_RESTRICT code, int8_t* HWY_RESTRICT levels) {
    unsigned history = 0;
    for (size_t first = 0; first < format.n_active; first += kWideLookup, levels += kWideLookup) {
        const TransformFormat::WideLookup& lookup = format.wide_lookups[first / kWideLookup];
        const uint8_t* HWY_RESTRICT from = code + first / 8;
        uint64_t bits = 0;
        std::memcpy(&bits, from, sizeof(bits));
        __m512i place = _mm512_loadu_si512(lookup.first.data());
        place = _mm512_mask_add_epi8(place, Trellis::low(bits, history), place, _mm512_set1_epi8(1));
        place = _mm512_mask_add_epi8(place, Trellis::high(bits, history), place, _mm512_set1_epi8(2));
        history = Trellis::history_after(bits);
        for (size_t plane = 1; plane < lookup.n_planes; ++plane) {
            from += format.plane_bytes[plane - 1];
            std::memcpy(&bits, from, sizeof(bits));
            const __m512i bit = _mm512_set1_epi8(static_cast<char>(2U << plane));
            place = _mm512_mask_add_epi8(place, bits & lookup.in_plane[plane], place, bit);
        }
        const int8_t* HWY_RESTRICT table = lookup.table.data();
        __m512i found = choose(place, _mm512_loadu_si512(table), _mm512_loadu_si512(table + 64));
        if (lookup.is_long) {
            const __m512i above = choose(place, _mm512_loadu_si512(table + 128), _mm512_loadu_si512(table + 192));
            found = _mm512_mask_mov_epi8(found, _mm512_movepi8_mask(place), above);
        }
        _mm512_storeu_si512(levels, found);
    }
}

}  // namespace byte_instructions
#else
#define KVCODEC_BYTE_INSTRUCTIONS 0
#endif

/// Levels of one code, kLookup at a time.
void unpack_levels(const TransformFormat& format, const uint8_t* HWY_RESTRICT code, int8_t* HWY_RESTRICT levels) {
    const hn::CappedTag<int8_t, kLookup> bytes;
    const hn::RebindToUnsigned<decltype(bytes)> unsigned_bytes;
    unsigned history = 0;
    for (size_t first = 0; first < format.n_active; first += kLookup, levels += kLookup) {
        const TransformFormat::Lookup& lookup = format.lookups[first / kLookup];
        // bits past the plane's end do no harm: their components have no levels
        uint32_t path = 0;
        std::memcpy(&path, code + first / 8, sizeof(path));
        // Masks may be read as 8 bytes whatever their number of bits.
        uint32_t plane[kMaxBits + 2] = {Trellis::low(path, history), Trellis::high(path, history)};
        history = Trellis::history_after(path);
        const uint8_t* HWY_RESTRICT from = code + first / 8;
        for (size_t p = 1; p < lookup.n_planes; ++p) {
            from += format.plane_bytes[p - 1];
            std::memcpy(&plane[p + 1], from, sizeof(uint32_t));
            plane[p + 1] &= lookup.in_plane[p];
        }
        for (size_t part = 0; part < kLookup; part += hn::Lanes(bytes)) {
            auto place = hn::LoadU(unsigned_bytes, lookup.first.data() + part);
            for (size_t p = 0; p <= lookup.n_planes; ++p) {
                const auto is_set =
                    hn::LoadMaskBits(unsigned_bytes, reinterpret_cast<const uint8_t*>(&plane[p]) + part / 8);
                const auto bit = hn::Set(unsigned_bytes, static_cast<uint8_t>(1U << p));
                place = hn::Add(place, hn::IfThenElseZero(is_set, bit));
            }
            hn::StoreU(look_up(bytes, lookup, part, hn::BitCast(bytes, place)), bytes, levels + part);
        }
    }
}

static_assert(kMaxDim <= level_rows::kMaxDim && kChunk == level_rows::kMaxRows);
static_assert(kWideLookup % level_rows::kStrideMultiple == 0 && kWideLookup % kLookup == 0);
static_assert(kWideLookup % Synthesis::kStrideMultiple == 0 && kMaxDim <= Synthesis::kMaxRows);

/// A few rows as levels, with their scales.
struct Chunk {
    std::array<float, kChunk> scale;
    HWY_ALIGN std::array<int8_t, kChunk * kMaxDim> levels;

    level_rows::LevelRows load(const TransformFormat& format, const uint8_t* codes, std::span<const uint16_t> rows) {
        const size_t stride = (format.n_active + kWideLookup - 1) / kWideLookup * kWideLookup;
        for (size_t i = 0; i < rows.size(); ++i) {
            const uint8_t* code = codes + rows[i] * format.code_bytes;
            scale[i] = format.scales[code[format.code_bytes - 1]];
#if KVCODEC_BYTE_INSTRUCTIONS
            if (format.has_byte_instructions) {
                byte_instructions::unpack_levels(format, code, levels.data() + i * stride);
                continue;
            }
#endif
            unpack_levels(format, code, levels.data() + i * stride);
        }
        // The lanes' tables have rows of zeros for components without bits, whose levels are zero too.
        return {levels.data(), stride, scale.data(), rows.size(), (format.n_active + 15) / 16 * 16};
    }
};

void score_rows(const TransformFormat& format, const float* table, size_t lanes, const uint8_t* codes,
                std::span<const uint16_t> rows, float* s) {
    level_rows::score_all<Chunk>(format, table, lanes, codes, rows, s);
}

void accumulate_rows(const TransformFormat& format, const float* p, size_t lanes, const uint8_t* codes,
                     std::span<const uint16_t> rows, float* acc) {
    level_rows::accumulate_all<Chunk>(format, p, lanes, codes, rows, acc);
}

/// x [n, part.size] of n <= kChunk rows.
void decode_rows(const TransformFormat& format, const uint8_t* codes, size_t n, TransformCodec::Part part, float* x) {
    Chunk chunk;
    std::array<uint16_t, kChunk> rows;
    std::iota(rows.begin(), rows.end(), uint16_t{0});
    const level_rows::LevelRows of = chunk.load(format, codes, std::span(rows).first(n));
    format.synthesis.rebuild(of.levels, of.stride, of.scale, n, part, x);
}

}  // namespace
}  // namespace kvcodec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(decode_rows);
HWY_EXPORT(score_rows);
HWY_EXPORT(accumulate_rows);

constexpr int kStepsPerOctave = 12;
/// Scale byte of a vector whose components have just their deviations.
constexpr int kUnitScale = 128;
/// First of the scales that are tried around the one of the vector's energy.
constexpr int kFirstScale = -2;

/// Bits of every group; code_bytes includes the scale.
std::vector<uint8_t> allocate(std::span<const float> variance, size_t code_bytes) {
    const size_t n_groups = variance.size() / kGroup;
    std::vector<double> energy(n_groups);
    for (size_t i = 0; i < n_groups * kGroup; ++i) {
        energy[i / kGroup] += static_cast<double>(variance[i]);
    }
    std::vector<uint8_t> bits(n_groups);
    for (size_t left = code_bytes - 1; left != 0; --left) {
        size_t best = n_groups;
        double most = -1.0;
        for (size_t group = 0; group < n_groups; ++group) {
            if (bits[group] == kMaxBits || (group > 0 && bits[group] == bits[group - 1])) {
                continue;
            }
            const double gain =
                energy[group] * (Trellis::levels(bits[group]).loss - Trellis::levels(bits[group] + 1U).loss);
            if (gain > most) {
                most = gain;
                best = group;
            }
        }
        ++bits[best];
    }
    return bits;
}

/// Byte of one of the scales that are tried; octaves: of the vector's own scale.
uint8_t scale_byte(double octaves, size_t candidate) {
    const int middle = kUnitScale + static_cast<int>(std::lround(octaves * kStepsPerOctave));
    return static_cast<uint8_t>(std::clamp(middle + kFirstScale + static_cast<int>(candidate), 1, 255));
}

/// Orthonormal Walsh-Hadamard transform of n rows [n, dim]; n a power of two.
void mix_rows(std::vector<float>& rows, size_t n, size_t dim) {
    const float half_power = std::numbers::sqrt2_v<float> / 2;
    for (size_t half = 1; half < n; half *= 2) {
        for (size_t k = 0; k < n; ++k) {
            for (size_t i = 0; (k & half) == 0 && i < dim; ++i) {
                float& a = rows[k * dim + i];
                float& b = rows[(k + half) * dim + i];
                const float sum = (a + b) * half_power;
                b = (a - b) * half_power;
                a = sum;
            }
        }
    }
}

/// The largest of the integers that stand for levels. Few levels need few: then rows of few bits, which have small
/// elements, are rounded no worse than the others.
float largest_level(unsigned bits) {
    constexpr std::array<float, kMaxBits + 1> kLargest = {127, 16, 32, 64, 127, 127, 127};
    return kLargest[bits];
}

int8_t level_of(unsigned bits, size_t place) {
    const auto level = static_cast<float>(Trellis::levels(bits).level[place]);
    return static_cast<int8_t>(std::lround(level * largest_level(bits) / 127.0F));
}

/// Where every component's levels are found.
std::vector<TransformFormat::Lookup> make_lookups(const std::vector<uint8_t>& bits, size_t n_active) {
    constexpr size_t kLookup = TransformFormat::kLookup;
    constexpr size_t kTable = 16;
    std::vector<TransformFormat::Lookup> lookups((n_active + kLookup - 1) / kLookup);
    for (size_t u = 0; u < lookups.size(); ++u) {
        TransformFormat::Lookup& lookup = lookups[u];
        const auto bits_of = [&](size_t i) {
            const size_t group = (u * kLookup + i) / kGroup;
            return group < bits.size() ? bits[group] : uint8_t{0};
        };
        lookup.n_planes = bits_of(0);
        std::array<std::vector<int8_t>, kLookup / kTable>
            levels;  // of each 16 components, one alphabet after the other
        for (size_t i = 0; i < kLookup; ++i) {
            for (size_t plane = 0; plane < bits_of(i); ++plane) {
                lookup.in_plane[plane] |= uint32_t{1} << i;
            }
            std::vector<int8_t>& of_block = levels[i / kTable];
            const size_t n_levels = bits_of(i) == 0 ? 0 : size_t{2} << bits_of(i);
            if (i % kTable == 0 || bits_of(i) != bits_of(i - 1)) {
                lookup.first[i] = static_cast<uint8_t>(of_block.size());
                for (size_t place = 0; place < n_levels; ++place) {
                    of_block.push_back(level_of(bits_of(i), place));
                }
                of_block.resize(of_block.size() + (n_levels == 0 ? 4 : 0));  // zeros, whatever path bits say
            } else {
                lookup.first[i] = lookup.first[i - 1];
            }
        }
        const size_t most = std::max(levels[0].size(), levels[1].size());
        lookup.tables.resize((most + kTable - 1) / kTable * kLookup);
        for (size_t block = 0; block < levels.size(); ++block) {
            for (size_t i = 0; i < levels[block].size(); ++i) {
                lookup.tables[i / kTable * kLookup + block * kTable + i % kTable] = levels[block][i];
            }
        }
    }
    return lookups;
}

std::vector<TransformFormat::WideLookup> make_wide_lookups(const std::vector<uint8_t>& bits, size_t n_active) {
    constexpr size_t kWideLookup = TransformFormat::kWideLookup;
    std::vector<TransformFormat::WideLookup> lookups((n_active + kWideLookup - 1) / kWideLookup);
    for (size_t i = 0; i < lookups.size() * kWideLookup; ++i) {
        TransformFormat::WideLookup& lookup = lookups[i / kWideLookup];
        const size_t at = i % kWideLookup;
        const auto bits_of = [&](size_t j) { return j / kGroup < bits.size() ? bits[j / kGroup] : uint8_t{0}; };
        for (size_t plane = 0; plane < bits_of(i); ++plane) {
            lookup.in_plane[plane] |= uint64_t{1} << at;
        }
        if (at == 0) {
            lookup.n_planes = bits_of(i);
        } else {
            // Alphabets of fewer bits follow; the last, of none, has four levels 0.
            const bool is_new = bits_of(i) != bits_of(i - 1);
            lookup.first[at] = static_cast<uint8_t>(lookup.first[at - 1] + (is_new ? size_t{2} << bits_of(i - 1) : 0));
        }
        for (size_t place = 0; bits_of(i) != 0 && place < size_t{2} << bits_of(i); ++place) {
            lookup.table[lookup.first[at] + place] = level_of(bits_of(i), place);
        }
        lookup.is_long = lookup.first[at] + (size_t{2} << bits_of(i)) > 128;
    }
    return lookups;
}

}  // namespace

TransformCodec::TransformCodec(std::span<const float> basis, std::span<const float> variance, size_t code_bytes,
                               bool before_rope, float unbias)
    : trellis_({}, {}), before_rope_(before_rope) {
    const size_t dim = variance.size();
    if (dim == 0 || dim % 16 != 0 || dim > TransformFormat::kMaxDim || basis.size() != dim * dim) {
        throw Error("the transform codec needs a head size that is a multiple of 16 up to " +
                    std::to_string(TransformFormat::kMaxDim) + ", not " + std::to_string(dim));
    }
    if (code_bytes < 2 || code_bytes > max_code_bytes(dim)) {
        throw Error("the transform codec has codes of 2 to " + std::to_string(max_code_bytes(dim)) +
                    " bytes for vectors of " + std::to_string(dim) + ", not " + std::to_string(code_bytes));
    }
    const std::optional<std::vector<double>> columns = inverse(basis, dim);  // column j turns x into y_j
    if (!columns) {
        throw Error("the directions of the transform are not independent");
    }
    format_.dim = dim;
    format_.code_bytes = code_bytes;
    format_.bits = allocate(variance, code_bytes);
    for (size_t j = 0; j < dim; ++j) {
        const float* row = &basis[j * dim];
        const double energy = std::inner_product(row, row + dim, row, 0.0) * static_cast<double>(variance[j]);
        expected_.energy += energy;
        expected_.lost += energy * Trellis::levels(format_.bits[j / kGroup]).loss;
    }
    for (size_t plane = 0; plane < kMaxBits; ++plane) {
        format_.plane_bytes[plane] =
            static_cast<size_t>(std::ranges::count_if(format_.bits, [&](uint8_t bits) { return bits > plane; }));
    }
    format_.n_active = kGroup * format_.plane_bytes[0];
    energy_.reserve(format_.n_active);
    format_.analysis_unit.reserve(format_.n_active);
    std::vector<float> synthesis(format_.n_active * dim);
    std::vector<float> analysis(dim * format_.n_active);
    std::vector<float> size_of_level;  // [n_active], in deviations
    for (size_t begin = 0, size = 0; begin < format_.n_active; begin += size) {
        const uint8_t bits = format_.bits[begin / kGroup];
        const auto equal = std::ranges::count(format_.bits, bits);
        const auto first = std::ranges::find(format_.bits, bits) - format_.bits.begin();
        size = std::bit_floor(kGroup * static_cast<size_t>(first + equal) - begin);
        const float unit = Trellis::levels(bits).unit * 127.0F / largest_level(bits);
        const float gain = unbias_gain(Trellis::levels(bits).loss, unbias);
        const auto block = variance.subspan(begin, size);
        const float mean = std::accumulate(block.begin(), block.end(), 0.0F) / static_cast<float>(size);
        // Rows of the block [size, dim]: components times, and over, their deviations.
        std::vector<float> up(size * dim), down(size * dim);
        float energy = 0.0F;
        for (size_t k = 0; k < size; ++k) {
            // No component may drown the others when other data than the training's has more of it.
            const float kept =
                std::max({block[k], mean / TransformFormat::kMostSpread, TransformFormat::kLeastVariance});
            energy += kept / static_cast<float>(size);
            for (size_t i = 0; i < dim; ++i) {
                up[k * dim + i] = basis[(begin + k) * dim + i] * std::sqrt(kept) * unit;
                down[k * dim + i] = static_cast<float>((*columns)[i * dim + begin + k]) / std::sqrt(kept);
            }
        }
        energy_.insert(energy_.end(), size, energy);
        mix_rows(up, size, dim);
        mix_rows(down, size, dim);
        for (size_t k = 0; k < size; ++k) {
            const size_t j = begin + k;
            for (size_t i = 0; i < dim; ++i) {
                synthesis[j * dim + i] = gain * up[k * dim + i];
                analysis[i * format_.n_active + j] = down[k * dim + i];
            }
        }
        size_of_level.insert(size_of_level.end(), size, gain * unit);
    }
    format_.synthesis = Synthesis(synthesis, format_.n_active, dim);
    // Codes are of what the rounded rows E + S mean: to first order their inverse is A - A E A.
    for (size_t j = 0; j < format_.n_active; ++j) {
        for (size_t i = 0; i < dim; ++i) {
            float& row = synthesis[j * dim + i];
            row = (format_.synthesis.at(j, i) - row) / size_of_level[j];
        }
    }
    std::vector<float> product(format_.n_active * format_.n_active), correction(analysis.size());
    gemm_scores(synthesis.data(), format_.n_active, dim, analysis.data(), format_.n_active, product.data());
    gemm_scores(analysis.data(), dim, format_.n_active, product.data(), format_.n_active, correction.data());
    std::ranges::transform(analysis, correction, analysis.begin(), std::minus<>());
    for (size_t j = 0; j < format_.n_active; ++j) {
        float largest = 1e-30F;
        for (size_t i = 0; i < dim; ++i) {
            largest = std::max(largest, std::abs(analysis[i * format_.n_active + j]));
        }
        format_.analysis_unit.push_back(largest / 32767.0F);
    }
    format_.analysis.reserve(analysis.size());
    for (size_t i = 0; i < analysis.size(); ++i) {
        format_.analysis.push_back(
            static_cast<int16_t>(std::lround(analysis[i] / format_.analysis_unit[i % format_.n_active])));
    }
    format_.lookups = make_lookups(format_.bits, format_.n_active);
    format_.has_byte_instructions = has_avx512_vnni();
    if (format_.has_byte_instructions) {
        format_.wide_lookups = make_wide_lookups(format_.bits, format_.n_active);
    }
    for (int i = 1; i < 256; ++i) {
        format_.scales[static_cast<size_t>(i)] =
            static_cast<float>(std::exp2(static_cast<double>(i - kUnitScale) / kStepsPerOctave));
    }
    std::vector<uint8_t> bits(format_.n_active);
    for (size_t j = 0; j < bits.size(); ++j) {
        bits[j] = format_.bits[j / kGroup];
    }
    trellis_ = TrellisEncoder(std::move(bits), energy_);
}

double TransformCodec::expected_loss(std::span<const float> variance, size_t code_bytes) {
    const std::vector<uint8_t> bits = allocate(variance, code_bytes);
    double lost = 0.0;
    double total = 0.0;
    for (size_t i = 0; i < variance.size(); ++i) {
        total += static_cast<double>(variance[i]);
        lost +=
            static_cast<double>(variance[i]) * (i / kGroup < bits.size() ? Trellis::levels(bits[i / kGroup]).loss : 1);
    }
    return total == 0.0 ? 0.0 : lost / total;
}

std::string TransformCodec::describe() const {
    const double bits = static_cast<double>(8 * format_.code_bytes) / static_cast<double>(format_.dim);
    return fmt::format("transform, {:.2f} bits", bits);
}

size_t TransformCodec::fixed_bytes() const {
    size_t bytes = sizeof(format_) + format_.bits.size() + format_.synthesis.bytes() +
                   sizeof(int16_t) * format_.analysis.size() +
                   sizeof(float) * (format_.analysis_unit.size() + 2 * energy_.size()) + format_.n_active;
    for (const TransformFormat::Lookup& lookup : format_.lookups) {
        bytes += sizeof(lookup) + lookup.tables.size();
    }
    bytes += format_.wide_lookups.size() * sizeof(TransformFormat::WideLookup);
    return bytes;
}

void TransformCodec::encode(const float* x, size_t n, std::byte* codes) const {
    std::vector<float> analysis(format_.analysis.size());
    for (size_t i = 0; i < analysis.size(); ++i) {
        analysis[i] = static_cast<float>(format_.analysis[i]) * format_.analysis_unit[i % format_.n_active];
    }
    constexpr size_t kScales = TrellisEncoder::kScales;
    const size_t n_active = format_.n_active;
    const double variance = std::accumulate(energy_.begin(), energy_.end(), 0.0);
    std::vector<float> y(kChunk * n_active);
    std::vector<uint8_t> index(kChunk * n_active);
    std::array<float, kChunk> energy;
    std::array<std::array<uint8_t, kScales>, kChunk> bytes;
    std::array<float, kChunk * kScales> scales;
    std::array<TrellisEncoder::Choice, kChunk> choice;
    std::memset(codes, 0, n * format_.code_bytes);
    for (size_t first = 0; first < n; first += kChunk) {
        const size_t size = std::min(kChunk, n - first);
        gemm_scores(x + first * format_.dim, size, format_.dim, analysis.data(), n_active, y.data());
        for (size_t i = 0; i < size; ++i) {
            float* row = &y[i * n_active];
            energy[i] = 0.0F;
            for (size_t j = 0; j < n_active; ++j) {
                energy[i] += row[j] * row[j] * energy_[j];
            }
            if (!std::isfinite(energy[i]) || energy[i] == 0.0F) {  // decodes to zero whatever the trellis finds
                std::fill_n(row, n_active, 0.0F);
                energy[i] = 0.0F;
            }
            const double octaves = energy[i] == 0.0F ? 0.0 : 0.5 * std::log2(static_cast<double>(energy[i]) / variance);
            for (size_t s = 0; s < kScales; ++s) {
                bytes[i][s] = scale_byte(octaves, s);
                scales[i * kScales + s] = format_.scales[bytes[i][s]];
            }
        }
        trellis_.encode(y.data(), size, scales.data(), index.data(), choice.data());
        for (size_t i = 0; i < size; ++i) {
            if (choice[i].error < energy[i]) {
                auto* code = reinterpret_cast<uint8_t*>(codes + (first + i) * format_.code_bytes);
                pack_indices(format_, &index[i * n_active], code);
                code[format_.code_bytes - 1] = bytes[i][choice[i].scale];
            }
        }
    }
}

void TransformCodec::decode_part(const std::byte* codes, size_t first, size_t n, Part part, float* x) const {
    const auto* code = reinterpret_cast<const uint8_t*>(codes) + first * format_.code_bytes;
    for (size_t begin = 0; begin < n; begin += kChunk) {
        HWY_DYNAMIC_DISPATCH(decode_rows)
        (format_, code + begin * format_.code_bytes, std::min(kChunk, n - begin), part, x + begin * part.size);
    }
}

void TransformCodec::prepare_part(const float* q, size_t lanes, size_t begin, size_t end, Part part,
                                  float* table) const {
    const size_t coded = std::min(end, format_.n_active);
    format_.synthesis.prepare(q, lanes, begin, coded, part, table);
    for (size_t j = std::max(begin, coded); j < end; ++j) {
        std::fill_n(table + j * lanes, lanes, 0.0F);
    }
}

void TransformCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                           float* s) const {
    HWY_DYNAMIC_DISPATCH(score_rows)(format_, table, lanes, reinterpret_cast<const uint8_t*>(codes), rows, s);
}

void TransformCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                                float* acc) const {
    HWY_DYNAMIC_DISPATCH(accumulate_rows)(format_, p, lanes, reinterpret_cast<const uint8_t*>(codes), rows, acc);
}

TransformHead::TransformHead(std::shared_ptr<const TransformCodec> all, size_t head, size_t n_heads)
    : all_(std::move(all)), part_{head * all_->dim() / n_heads, all_->dim() / n_heads}, n_heads_(n_heads) {
    if (n_heads * part_.size != all_->dim() || head >= n_heads || part_.size % 16 != 0) {
        throw Error("a transform of " + std::to_string(all_->dim()) + " elements has no " + std::to_string(n_heads) +
                    " heads of a multiple of 16");
    }
}

std::string TransformHead::describe() const {
    return fmt::format("{} of {} heads together", all_->describe(), n_heads_);
}

}  // namespace kvcodec
#endif
