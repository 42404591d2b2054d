#include "kvcodec/codec/dictionary/packing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/dictionary/packing.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef KVCODEC_PACKING_SHARED
#define KVCODEC_PACKING_SHARED
namespace kvcodec {

// scale = 2^((code - kScaleBias) / kScaleSteps): 9 % apart, from 1e-6 to 3800.
constexpr int kScaleBias = 160;
constexpr int kScaleSteps = 8;

inline const std::array<float, 256>& scale_table() {
    static const std::array<float, 256> table = [] {
        std::array<float, 256> values{};
        for (int code = 0; code < 256; ++code) {
            values[code] = std::exp2(static_cast<float>(code - kScaleBias) / kScaleSteps);
        }
        return values;
    }();
    return table;
}

// OCP 8-bit float, 4 exponent and 3 mantissa bits, no infinities (e4m3fn).
inline const std::array<float, 256>& fp8_table() {
    static const std::array<float, 256> table = [] {
        std::array<float, 256> values{};
        for (int code = 0; code < 256; ++code) {
            const int exponent = (code >> 3) & 15;
            const float mantissa = static_cast<float>(code & 7) / 8;
            const float magnitude = exponent == 0 ? std::ldexp(mantissa, -6) : std::ldexp(1 + mantissa, exponent - 7);
            values[code] = (code & 128) != 0 ? -magnitude : magnitude;
        }
        values[0x7F] = 0;  // NaN codes are never written
        values[0xFF] = 0;
        return values;
    }();
    return table;
}

struct UnpackKernel {
    const Packing& packing;
    size_t stride() const { return packing.stride_; }
    size_t code_bytes() const { return packing.code_bytes_; }
    size_t coefficient_byte() const { return packing.coefficient_byte_; }
    unsigned index_bits() const { return packing.index_bits_; }
    CoefficientFormat format() const { return packing.format_; }
    CodeLayout layout() const { return packing.layout_; }
    const int8_t* signed_levels() const { return packing.signed_levels_.data(); }
    size_t n_groups() const { return packing.groups_.size(); }
    const auto* groups() const { return packing.groups_.data(); }
    size_t sparsity() const { return packing.sparsity_; }
};

}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// offset[i] = index_i * scale. `shift_scale` >= 0 stands for a scale of 2^shift_scale, the usual one.
template <class Group>
HWY_INLINE void unpack_indices(const Group* groups, size_t n_groups, uint32_t index_mask, uint32_t scale,
                               int shift_scale, const uint8_t* code, uint32_t* HWY_RESTRICT offset) {
    const hn::FixedTag<uint32_t, 4> d32;
    const hn::FixedTag<uint8_t, 16> d8;
    const auto mask = hn::Set(d32, index_mask);
    for (size_t g = 0; g < n_groups; ++g) {
        const Group& group = groups[g];
        const auto bytes = hn::TableLookupBytes(hn::LoadU(d8, code + group.byte), hn::LoadU(d8, group.shuffle.data()));
        const auto shifted = hn::BitCast(d32, bytes) >> hn::LoadU(d32, group.shift.data());
        const auto index = hn::And(shifted, mask);
        const auto scaled = shift_scale >= 0 ? hn::ShiftLeftSame(index, shift_scale) : index * hn::Set(d32, scale);
        hn::StoreU(scaled, d32, offset + 4 * g);
    }
}

// 16 nonzeros at a time: nibble -> signed level by one byte shuffle -> float.
HWY_INLINE void unpack_signed4(const uint8_t* nibbles, size_t count, size_t stride, const int8_t* signed_levels,
                               float scale, float* HWY_RESTRICT coefficient) {
    const hn::FixedTag<uint8_t, 16> d8;
    const hn::FixedTag<uint16_t, 8> d16;
    const hn::ScalableTag<float> df;
    const hn::Rebind<int8_t, decltype(df)> di8;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const size_t width = std::min<size_t>(hn::Lanes(df), 16);
    const auto levels = hn::LoadU(d8, reinterpret_cast<const uint8_t*>(signed_levels));
    const auto factor = hn::Set(df, scale);
    const auto low = hn::Set(d8, 15);
    for (size_t i = 0; i < stride; i += 16) {
        const auto packed = hn::LoadU(d8, nibbles + i / 2);
        const auto odd = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, packed))), low);
        const auto code4 = hn::InterleaveLower(d8, hn::And(packed, low), odd);
        alignas(16) int8_t value[16];
        hn::Store(hn::TableLookupBytes(levels, code4), d8, reinterpret_cast<uint8_t*>(value));
        for (size_t part = 0; part < 16; part += width) {
            const auto wide = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(di8, value + part))) * factor;
            const size_t live = count > i + part ? count - i - part : 0;
            hn::StoreU(hn::IfThenElseZero(hn::FirstN(df, live), wide), df, coefficient + i + part);
        }
    }
}

void unpack_rows(const Packing& packing, const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale,
                 uint32_t* offset, float* coefficient) {
    const UnpackKernel kernel{packing};
    const size_t stride = kernel.stride();
    const size_t sparsity = kernel.sparsity();
    const size_t code_bytes = kernel.code_bytes();
    const size_t coefficient_byte = kernel.coefficient_byte();
    const bool published = kernel.layout() == CodeLayout::kPublished;
    const bool signed4 = kernel.format() == CoefficientFormat::kSigned4;
    const auto* groups = kernel.groups();
    const size_t n_groups = kernel.n_groups();
    const uint32_t index_mask = (1U << kernel.index_bits()) - 1;
    const int shift_scale = std::has_single_bit(scale) ? std::countr_zero(scale) : -1;
    const auto& scales = scale_table();
    const auto& fp8 = fp8_table();
    const auto* bytes = reinterpret_cast<const uint8_t*>(codes);
    for (const uint16_t row : rows) {
        const uint8_t* code = bytes + row * code_bytes;
        unpack_indices(groups, n_groups, index_mask, scale, shift_scale, code, offset);
        if (signed4) {
            unpack_signed4(code + coefficient_byte, code[1], stride, kernel.signed_levels(), scales[code[0]] / 127,
                           coefficient);
        } else {
            const size_t count = published ? code[0] | (code[1] << 8) : code[1];
            const float factor = published ? 1.0F : scales[code[0]] / 448;
            for (size_t i = 0; i < stride; ++i) {
                coefficient[i] = i < count ? fp8[code[coefficient_byte + i]] * factor : 0.0F;
            }
        }
        for (size_t i = sparsity; i < stride; ++i) {
            offset[i] = 0;
        }
        offset += stride;
        coefficient += stride;
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

constexpr size_t kHeaderBytes = 2;

unsigned bits_for(size_t n_atoms) {
    return std::max(1, static_cast<int>(std::bit_width(n_atoms - 1)));
}

uint8_t nearest_fp8(float value) {
    const auto& table = fp8_table();
    const float magnitude = std::min(std::abs(value), 448.0F);
    const auto* upper = std::lower_bound(table.begin(), table.begin() + 0x7E, magnitude);
    auto code = static_cast<uint8_t>(upper - table.begin());
    if (code > 0 && magnitude - table[code - 1] < table[code] - magnitude) {
        --code;
    }
    return value < 0 ? code | 0x80 : code;
}

int scale_code(float magnitude) {
    const float code = std::ceil(std::log2(std::max(magnitude, 1e-30F)) * kScaleSteps) + kScaleBias;
    return static_cast<int>(std::clamp(code, 0.0F, 255.0F));
}

// n_bits <= 16; touches only the bytes that the bits lie in.
void put_bits(uint8_t* bytes, size_t bit, unsigned n_bits, uint32_t value) {
    uint32_t shifted = value << bit % 8;
    for (size_t byte = bit / 8; byte <= (bit + n_bits - 1) / 8; ++byte, shifted >>= 8) {
        bytes[byte] |= static_cast<uint8_t>(shifted);
    }
}

}  // namespace

size_t Packing::code_bytes(size_t n_atoms, size_t sparsity, CoefficientFormat format, CodeLayout layout) {
    if (layout == CodeLayout::kPublished) {
        return 3 * sparsity + 2;
    }
    const size_t coefficient_bits = format == CoefficientFormat::kSigned4 ? 4 : 8;
    return kHeaderBytes + (sparsity * (coefficient_bits + bits_for(n_atoms)) + 7) / 8;
}

Packing::Packing(size_t n_atoms, size_t sparsity, CoefficientFormat format, CodeLayout layout,
                 std::span<const float> levels)
    : n_atoms_(n_atoms),
      sparsity_(sparsity),
      stride_((sparsity + 15) / 16 * 16),
      format_(layout == CodeLayout::kPublished ? CoefficientFormat::kFp8 : format),
      layout_(layout),
      index_bits_(layout == CodeLayout::kPublished ? 16 : bits_for(n_atoms)),
      code_bytes_(code_bytes(n_atoms, sparsity, format, layout)),
      coefficient_byte_(kHeaderBytes) {
    const size_t index_start = 8 * kHeaderBytes + sparsity * (format_ == CoefficientFormat::kSigned4 ? 4 : 8);
    index_byte_ = index_start / 8;
    index_bit_ = index_start % 8;
    if (format_ == CoefficientFormat::kSigned4) {
        for (size_t i = 0; i < kLevels; ++i) {
            const auto level = static_cast<int8_t>(std::lround(std::clamp(levels[i], 0.0F, 1.0F) * 127));
            signed_levels_[i] = level;
            signed_levels_[i + kLevels] = static_cast<int8_t>(-level);
        }
    }
    for (size_t first = 0; first < sparsity; first += 4) {
        IndexGroup group{};
        const size_t start = index_start + first * index_bits_;
        group.byte = static_cast<uint32_t>(start / 8);
        for (size_t i = 0; i < 4; ++i) {
            const size_t bit = start + i * index_bits_;
            group.shift[i] = bit % 8;
            for (size_t byte = 0; byte < 4; ++byte) {
                group.shuffle[4 * i + byte] = static_cast<uint8_t>(bit / 8 - group.byte + byte);
            }
        }
        groups_.push_back(group);
    }
}

void Packing::pack(const uint16_t* index, const float* coefficient, size_t count, std::byte* code) const {
    auto* bytes = reinterpret_cast<uint8_t*>(code);
    std::memset(bytes, 0, code_bytes_);
    float largest = 0;
    for (size_t i = 0; i < count; ++i) {
        largest = std::max(largest, std::abs(coefficient[i]));
    }
    if (largest == 0) {
        return;
    }
    if (layout_ == CodeLayout::kPublished) {
        bytes[0] = static_cast<uint8_t>(count);
    } else {
        bytes[1] = static_cast<uint8_t>(count);
    }
    if (format_ == CoefficientFormat::kFp8) {
        float factor = 1;
        if (layout_ == CodeLayout::kPacked) {
            bytes[0] = static_cast<uint8_t>(scale_code(largest));
            factor = scale_table()[bytes[0]] / 448;
        }
        for (size_t i = 0; i < count; ++i) {
            bytes[coefficient_byte_ + i] = nearest_fp8(coefficient[i] / factor);
        }
    } else {
        // The scale that codes these coefficients with the least squared error, among the few that can.
        double best_error = INFINITY;
        std::array<uint8_t, 256> best{};
        const int top = scale_code(largest);
        for (int candidate = std::max(0, top - 3); candidate <= std::min(255, top + 2); ++candidate) {
            const float unit = scale_table()[candidate] / 127;
            std::array<uint8_t, 256> chosen{};
            double error = 0;
            for (size_t i = 0; i < count; ++i) {
                const float magnitude = std::abs(coefficient[i]) / unit;
                size_t level = 0;
                while (level + 1 < kLevels &&
                       2 * magnitude > static_cast<float>(signed_levels_[level] + signed_levels_[level + 1])) {
                    ++level;
                }
                const double miss = (magnitude - static_cast<float>(signed_levels_[level])) * double{unit};
                error += miss * miss;
                chosen[i] = static_cast<uint8_t>(coefficient[i] < 0 ? level + kLevels : level);
            }
            if (error < best_error) {
                best_error = error;
                best = chosen;
                bytes[0] = static_cast<uint8_t>(candidate);
            }
        }
        for (size_t i = 0; i < count; ++i) {
            bytes[coefficient_byte_ + i / 2] |= static_cast<uint8_t>(best[i] << (4 * (i % 2)));
        }
    }
    for (size_t i = 0; i < count; ++i) {
        put_bits(bytes, 8 * index_byte_ + index_bit_ + i * index_bits_, index_bits_, index[i]);
    }
}

HWY_EXPORT(unpack_rows);

void Packing::unpack(const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale, uint32_t* offset,
                     float* coefficient) const {
    HWY_DYNAMIC_DISPATCH(unpack_rows)(*this, codes, rows, scale, offset, coefficient);
}

}  // namespace kvcodec
#endif
