#include "kvcodec/codec/transform/transform_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>
#include <numeric>
#include <optional>

#include "kvcodec/attend/gemm.h"
#include "kvcodec/codec/shrinkage.h"
#include "kvcodec/codec/transform/inverse.h"
#include "kvcodec/error.h"

// Scalable vectors cannot be kept in arrays; ARM machines with SVE run the NEON code.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/transform/transform_codec.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#ifndef KVCODEC_TRANSFORM_CODEC_ONCE
#define KVCODEC_TRANSFORM_CODEC_ONCE
namespace kvcodec {
namespace {

constexpr size_t kGroup = TransformFormat::kGroup;
constexpr size_t kMaxBits = TransformFormat::kMaxBits;
constexpr size_t kMaxDim = TransformFormat::kMaxDim;
/// Rows coded or decoded at a time.
constexpr size_t kChunk = 32;

/// By byte: its bits as eight bytes.
const std::array<uint64_t, 256>& spread_bits() {
    static const auto instance = [] {
        std::array<uint64_t, 256> all{};
        for (size_t byte = 0; byte < 256; ++byte) {
            for (size_t bit = 0; bit < 8; ++bit) {
                all[byte] |= uint64_t{byte >> bit & 1} << (8 * bit);
            }
        }
        return all;
    }();
    return instance;
}

/// Place of each component's level in one code, eight to a word.
void unpack_places(const TransformFormat& format, const uint8_t* code, uint64_t* place) {
    constexpr size_t kWord = sizeof(uint64_t);
    const std::array<uint64_t, 256>& spread = spread_bits();
    unsigned history = 0;
    for (size_t first = 0; first < format.plane_bytes[0]; first += kWord) {
        uint64_t path = 0;  // bits past the plane's end do no harm: only later components would see them
        std::memcpy(&path, code + first, kWord);
        uint64_t low = Trellis::low(path, history), high = Trellis::high(path, history);
        history = Trellis::history_after(path);
        for (size_t group = first; group < std::min(first + kWord, format.plane_bytes[0]); ++group) {
            place[group] = spread[low & 0xff] | spread[high & 0xff] << 1;
            low >>= 8;
            high >>= 8;
        }
    }
    code += format.plane_bytes[0];
    for (size_t plane = 1; plane < kMaxBits; code += format.plane_bytes[plane], ++plane) {
        for (size_t group = 0; group < format.plane_bytes[plane]; ++group) {
            place[group] |= spread[code[group]] << (plane + 1);
        }
    }
}

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

/// Levels [n_active] of one code.
void unpack_levels(const TransformFormat& format, const uint8_t* code, int16_t* HWY_RESTRICT levels) {
    const hn::FixedTag<int8_t, 16> bytes;
    const hn::FixedTag<uint64_t, 2> words;
    const hn::FixedTag<int16_t, 8> shorts;
    HWY_ALIGN uint64_t place[kMaxDim / kGroup];
    unpack_places(format, code, place);
    for (size_t group = 0; group < format.plane_bytes[0]; ++group, levels += kGroup) {
        const int8_t* level = Trellis::levels(format.bits[group]).level.data();
        if (format.bits[group] <= 4) {
            const auto places = hn::BitCast(bytes, hn::Set(words, place[group]));
            auto found = hn::TableLookupBytes(hn::LoadU(bytes, level), places);
            if (format.bits[group] == 4) {
                const auto low_bits = hn::And(places, hn::Set(bytes, 15));
                const auto upper = hn::TableLookupBytes(hn::LoadU(bytes, level + 16), low_bits);
                found = hn::TableLookupBytes(hn::LoadU(bytes, level), low_bits);
                found = hn::IfThenElse(hn::Gt(places, hn::Set(bytes, 15)), upper, found);
            }
            hn::Store(hn::PromoteTo(shorts, hn::LowerHalf(found)), shorts, levels);
        } else {
            for (size_t i = 0; i < kGroup; ++i) {
                levels[i] = level[place[group] >> (8 * i) & 0xff];
            }
        }
    }
}

/// x [kRows, stride] of elements [0, kVectors * Lanes): levels [kRows, n_active] times the synthesis.
template <size_t kRows, size_t kVectors, class D>
HWY_INLINE void synthesise_tile(D d, const TransformFormat& format, const int16_t* HWY_RESTRICT levels,
                                const int16_t* HWY_RESTRICT synthesis, const float* HWY_RESTRICT scale,
                                float* HWY_RESTRICT x, size_t stride) {
    const hn::Rebind<int32_t, D> sums;
    const hn::Repartition<int16_t, D> shorts;
    const size_t width = hn::Lanes(d);
    hn::Vec<decltype(sums)> sum[kRows][kVectors];
    hn::Vec<decltype(sums)> rest[kRows][kVectors];  // unused where one instruction adds pairs, as on x86
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t v = 0; v < kVectors; ++v) {
            sum[r][v] = hn::Zero(sums);
            rest[r][v] = hn::Zero(sums);
        }
    }
    const auto add_pair = [&](size_t j) HWY_ATTR {
        const int16_t* HWY_RESTRICT row = synthesis + j * format.dim;
        hn::Vec<decltype(shorts)> part[kVectors];
        for (size_t v = 0; v < kVectors; ++v) {
            part[v] = hn::LoadU(shorts, row + 2 * v * width);
        }
        for (size_t r = 0; r < kRows; ++r) {
            int32_t pair = 0;
            std::memcpy(&pair, levels + r * format.n_active + j, sizeof(pair));
            const auto factors = hn::BitCast(shorts, hn::Set(sums, pair));
            for (size_t v = 0; v < kVectors; ++v) {
                sum[r][v] = hn::ReorderWidenMulAccumulate(sums, factors, part[v], sum[r][v], rest[r][v]);
            }
        }
    };
    for (size_t j = 0; j < format.n_active; j += 4) {
        add_pair(j);
        add_pair(j + 2);
    }
    for (size_t r = 0; r < kRows; ++r) {
        const auto factor = hn::Set(d, scale[r]);
        for (size_t v = 0; v < kVectors; ++v) {
            const auto total = hn::ConvertTo(d, hn::RearrangeToOddPlusEven(sum[r][v], rest[r][v]));
            hn::StoreU(hn::Mul(factor, total), d, x + r * stride + v * width);
        }
    }
}

/// Elements [first, first + kVectors * Lanes) of the vector to x [n, stride].
template <size_t kVectors, class D>
HWY_INLINE void synthesise_columns(D d, const TransformFormat& format, const int16_t* levels, const float* scale,
                                   size_t n, size_t first, float* x, size_t stride) {
    constexpr size_t kTall = 4;
    const int16_t* synthesis = format.synthesis.data() + 2 * first;
    size_t row = 0;
    for (; row + kTall <= n; row += kTall) {
        synthesise_tile<kTall, kVectors>(d, format, levels + row * format.n_active, synthesis, scale + row,
                                         x + row * stride, stride);
    }
    for (; row < n; ++row) {
        synthesise_tile<1, kVectors>(d, format, levels + row * format.n_active, synthesis, scale + row,
                                     x + row * stride, stride);
    }
}

/// y [rows, n_active]: levels times scales, for at most kChunk rows.
void unpack_rows(const TransformFormat& format, const uint8_t* codes, std::span<const uint16_t> rows,
                 float* HWY_RESTRICT y) {
    const hn::CappedTag<float, 8> d;
    const hn::Rebind<int16_t, decltype(d)> shorts;
    const hn::Rebind<int32_t, decltype(d)> integers;
    HWY_ALIGN int16_t levels[kMaxDim];
    for (const uint16_t row : rows) {
        const uint8_t* code = codes + row * format.code_bytes;
        unpack_levels(format, code, levels);
        const auto scale = hn::Set(d, format.scales[code[format.code_bytes - 1]]);
        for (size_t i = 0; i < format.n_active; i += hn::Lanes(d)) {
            const auto level = hn::PromoteTo(integers, hn::LoadU(shorts, levels + i));
            hn::StoreU(hn::Mul(scale, hn::ConvertTo(d, level)), d, y + i);
        }
        y += format.n_active;
    }
}

/// Elements [begin, begin + size) of n <= kChunk rows.
void decode_rows(const TransformFormat& format, const uint8_t* codes, size_t n, size_t begin, size_t size, float* x) {
    HWY_ALIGN int16_t levels[kChunk * kMaxDim];
    HWY_ALIGN float scale[kChunk];
    for (size_t row = 0; row < n; ++row) {
        const uint8_t* code = codes + row * format.code_bytes;
        unpack_levels(format, code, levels + row * format.n_active);
        scale[row] = format.scales[code[format.code_bytes - 1]] * format.synthesis_unit;
    }
    const hn::CappedTag<float, 16> wide;
    const hn::CappedTag<float, 8> narrow;
    size_t i = 0;
    for (; i + 2 * hn::Lanes(wide) <= size; i += 2 * hn::Lanes(wide)) {
        synthesise_columns<2>(wide, format, levels, scale, n, begin + i, x + i, size);
    }
    for (; i < size; i += 2 * hn::Lanes(narrow)) {
        synthesise_columns<2>(narrow, format, levels, scale, n, begin + i, x + i, size);
    }
}

}  // namespace
}  // namespace kvcodec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(decode_rows);
HWY_EXPORT(unpack_rows);

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

/// Rows [begin, end) of the synthesis transposed [dim, n_active], in floats: made when it is needed, because it would
/// take twice the memory.
std::vector<float> expansion(const TransformFormat& format, size_t begin, size_t end) {
    std::vector<float> matrix((end - begin) * format.n_active);
    for (size_t j = 0; j < format.n_active; ++j) {
        for (size_t i = begin; i < end; ++i) {
            matrix[(i - begin) * format.n_active + j] =
                format.synthesis_unit * static_cast<float>(format.synthesis[(j / 2 * format.dim + i) * 2 + j % 2]);
        }
    }
    return matrix;
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
    std::vector<float> synthesis(format_.n_active * dim);  // [n_active / 2, dim, 2]
    std::vector<float> analysis(dim * format_.n_active);
    for (size_t begin = 0, size = 0; begin < format_.n_active; begin += size) {
        const uint8_t bits = format_.bits[begin / kGroup];
        const auto equal = std::ranges::count(format_.bits, bits);
        const auto first = std::ranges::find(format_.bits, bits) - format_.bits.begin();
        size = std::bit_floor(kGroup * static_cast<size_t>(first + equal) - begin);
        const float unit = Trellis::levels(bits).unit;
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
                synthesis[(j / 2 * dim + i) * 2 + j % 2] = gain * up[k * dim + i];
                analysis[i * format_.n_active + j] = down[k * dim + i];
            }
        }
    }
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
    // Sums of kMaxDim products with levels stay below 2^31.
    constexpr float kLargest = 16383.0F;
    const auto [lowest, highest] = std::ranges::minmax(synthesis);
    format_.synthesis_unit = std::max(-lowest, highest) / kLargest;
    format_.synthesis.reserve(synthesis.size());
    std::ranges::transform(synthesis, std::back_inserter(format_.synthesis), [&](float v) {
        return static_cast<int16_t>(std::lround(format_.synthesis_unit == 0.0F ? 0.0F : v / format_.synthesis_unit));
    });
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
    return sizeof(format_) + format_.bits.size() +
           sizeof(int16_t) * (format_.synthesis.size() + format_.analysis.size()) +
           sizeof(float) * (format_.analysis_unit.size() + 2 * energy_.size()) + format_.n_active;
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
        (format_, code + begin * format_.code_bytes, std::min(kChunk, n - begin), part.begin, part.size,
         x + begin * part.size);
    }
}

void TransformCodec::prepare_part(const float* q, size_t lanes, size_t begin, size_t end, Part part,
                                  float* table) const {
    const std::vector<float> matrix = expansion(format_, part.begin, part.begin + part.size);
    for (size_t j = begin; j < end; ++j) {
        float* row = table + j * lanes;
        std::fill_n(row, lanes, 0.0F);
        for (size_t i = 0; j < format_.n_active && i < part.size; ++i) {
            for (size_t lane = 0; lane < lanes; ++lane) {
                row[lane] += matrix[i * format_.n_active + j] * q[lane * part.size + i];
            }
        }
    }
}

void TransformCodec::score(const float* table, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                           float* s) const {
    alignas(64) std::array<float, kChunk * kMaxDim> y;
    for (size_t begin = 0; begin < rows.size(); begin += kChunk, s += kChunk * lanes) {
        const auto chunk = rows.subspan(begin, std::min(kChunk, rows.size() - begin));
        HWY_DYNAMIC_DISPATCH(unpack_rows)(format_, reinterpret_cast<const uint8_t*>(codes), chunk, y.data());
        gemm_scores(y.data(), chunk.size(), format_.n_active, table, lanes, s);
    }
}

void TransformCodec::accumulate(const float* p, size_t lanes, const std::byte* codes, std::span<const uint16_t> rows,
                                float* acc) const {
    alignas(64) std::array<float, kChunk * kMaxDim> y;
    for (size_t begin = 0; begin < rows.size(); begin += kChunk, p += kChunk * lanes) {
        const auto chunk = rows.subspan(begin, std::min(kChunk, rows.size() - begin));
        HWY_DYNAMIC_DISPATCH(unpack_rows)(format_, reinterpret_cast<const uint8_t*>(codes), chunk, y.data());
        gemm_values(y.data(), chunk.size(), format_.n_active, p, lanes, acc);
    }
}

void TransformCodec::finish_part(const float* acc, size_t lanes, size_t begin, size_t end, Part part,
                                 float* out) const {
    const std::vector<float> matrix = expansion(format_, part.begin + begin, part.begin + end);
    std::vector<float> expanded((end - begin) * lanes);
    gemm_scores(matrix.data(), end - begin, format_.n_active, acc, lanes, expanded.data());
    for (size_t i = begin; i < end; ++i) {
        for (size_t lane = 0; lane < lanes; ++lane) {
            out[lane * part.size + i] += expanded[(i - begin) * lanes + lane];
        }
    }
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
