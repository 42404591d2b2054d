#include "kvcodec/codec/dictionary/packing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kvcodec/target.h"

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

static_assert(kMaxSparsity <= kMaxOnes);
// With the low bits that take the least room there are no more than twice as many high ones as indices.
static_assert(3 * kMaxSparsity <= kMaxOneBits);

constexpr size_t kUnits = 8;  // candidates for the unit of the levels

/// Coefficients of ascending magnitude that are to be quantised, and the products of their atoms, or null. order: which
/// row of these is whose.
struct ToQuantise {
    std::array<float, kMaxSparsity> coefficient;
    size_t n;
    std::array<float, kUnits> unit;
    const int8_t* levels;  // [Packing::kLevels], ascending, of magnitudes
    SupportGram support;
    const uint8_t* order;
};

/// What each unit makes of them, and the squared error that it adds.
struct Quantised {
    std::array<std::array<int32_t, kUnits>, kMaxSparsity> code;
    std::array<float, kUnits> error;
};

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
    BitField high_bits() const { return packing.high_bits_; }
    bool has_vbmi2() const { return packing.has_vbmi2_; }
    uint32_t last_atom() const { return static_cast<uint32_t>(packing.n_atoms_ - 1); }
};

}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The first elements of 16, as many as D has.
template <class D>
HWY_INLINE hn::Vec<D> first_of(D d, hn::Vec<hn::FixedTag<int8_t, 16>> value) {
    if constexpr (hn::MaxLanes(d) == 8) {
        return hn::LowerHalf(d, value);
    } else {
        static_assert(hn::MaxLanes(d) == 4);
        return hn::LowerHalf(d, hn::LowerHalf(value));
    }
}

// What unpack_group() reads: some rows and what holds for all.
struct ToUnpack {
    static constexpr size_t kRows = 16;
    size_t n_rows = 0;
    std::array<const uint8_t*, kRows> code;
    std::array<size_t, kRows> count;
    std::array<float, kRows> unit;                      // of the coefficients
    std::array<uint8_t, kRows * kOnesStride> position;  // of the ones among the high bits
    size_t stride;
    unsigned low_bits;
    uint32_t last_atom;
    uint32_t scale;
    size_t coefficient_byte;
    const int8_t* signed_levels;
};

// Group g of each row's nonzeros. kHighBits: of the indices, those that are stored as such are the low bits. kNibbles:
// coefficients are nibbles; others are not written.
template <bool kHighBits, bool kNibbles, class Group>
HWY_INLINE void unpack_group(const Group& group, size_t g, const ToUnpack& of, uint32_t* HWY_RESTRICT offset,
                             float* HWY_RESTRICT coefficient) {
    constexpr size_t kSize = Group::kSize;
    const hn::CappedTag<uint32_t, kSize> d;
    const hn::RebindToFloat<decltype(d)> d_float;
    const hn::RebindToSigned<decltype(d)> d_int;
    const hn::Repartition<uint8_t, decltype(d)> d_bytes;
    const hn::Rebind<uint8_t, decltype(d)> d_position;
    const hn::Rebind<int8_t, decltype(d)> d_level;
    const hn::FixedTag<uint8_t, 16> d16;
    const hn::FixedTag<uint16_t, 8> d16_pairs;
    const hn::FixedTag<int8_t, 16> d16_levels;
    constexpr size_t kWidth = hn::MaxLanes(d);
    const auto low_mask = hn::Set(d, (1U << of.low_bits) - 1);
    const auto last_atom = hn::Set(d, of.last_atom);
    const auto scale = hn::Set(d, of.scale);
    const auto levels = hn::LoadU(d16, reinterpret_cast<const uint8_t*>(of.signed_levels));
    const auto nibble = hn::Set(d16, 15);
    for (size_t part = 0; part < kSize; part += kWidth) {
        const size_t first = kSize * g + part;
        const auto rank = hn::Iota(d, static_cast<uint32_t>(first));
        const auto shuffle = hn::LoadU(d_bytes, group.shuffle.data() + 4 * part);
        const auto shift = hn::LoadU(d, group.shift.data() + part);
        const uint8_t* position = of.position.data() + first;
        const size_t at = of.coefficient_byte + kSize * g / 2;
        for (size_t i = 0; i < of.n_rows; ++i) {
            const uint8_t* code = of.code[i];
            const auto is_live = hn::Lt(rank, hn::Set(d, static_cast<uint32_t>(of.count[i])));
            const auto bytes = hn::TableLookupBytes(hn::LoadDup128(d_bytes, code + group.byte), shuffle);
            auto index = hn::And(hn::BitCast(d, bytes) >> shift, low_mask);
            if constexpr (kHighBits) {
                const auto found = hn::PromoteTo(d, hn::LoadU(d_position, position + i * kOnesStride));
                index = hn::Or(index, hn::ShiftLeftSame(found - rank, static_cast<int>(of.low_bits)));
            }
            index = hn::Min(index, last_atom);
            hn::StoreU(hn::IfThenElseZero(is_live, index * scale), d, offset + i * of.stride + first);
            if constexpr (kNibbles) {
                const auto packed = hn::LoadU(d16, code + at);
                const auto odd = hn::BitCast(d16, hn::ShiftRight<4>(hn::BitCast(d16_pairs, packed)));
                const auto code4 = hn::InterleaveLower(d16, hn::And(packed, nibble), hn::And(odd, nibble));
                auto level = hn::BitCast(d16_levels, hn::TableLookupBytes(levels, code4));
                if (part != 0) {
                    level = hn::ShiftRightBytes<kWidth>(d16_levels, level);
                }
                const auto wide = hn::ConvertTo(d_float, hn::PromoteTo(d_int, first_of(d_level, level)));
                hn::StoreU(hn::IfThenElseZero(hn::RebindMask(d_float, is_live), wide * hn::Set(d_float, of.unit[i])),
                           d_float, coefficient + i * of.stride + first);
            }
        }
    }
}

void unpack_rows(const Packing& packing, const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale,
                 uint32_t* offset, float* coefficient) {
    const UnpackKernel kernel{packing};
    const size_t code_bytes = kernel.code_bytes();
    const size_t sparsity = kernel.sparsity();
    const bool published = kernel.layout() == CodeLayout::kPublished;
    const bool signed4 = kernel.format() == CoefficientFormat::kSigned4;
    const auto& scales = scale_table();
    const auto& fp8 = fp8_table();
    const auto* bytes = reinterpret_cast<const uint8_t*>(codes);
    ToUnpack of;
    of.stride = kernel.stride();
    of.low_bits = kernel.index_bits();
    of.last_atom = kernel.last_atom();
    of.scale = scale;
    of.coefficient_byte = kernel.coefficient_byte();
    of.signed_levels = kernel.signed_levels();
    for (size_t first = 0; first < rows.size(); first += ToUnpack::kRows) {
        const auto part = rows.subspan(first, std::min(ToUnpack::kRows, rows.size() - first));
        of.n_rows = part.size();
        for (size_t i = 0; i < part.size(); ++i) {
            const uint8_t* code = bytes + part[i] * code_bytes;
            of.code[i] = code;
            if (published) {
                of.count[i] = std::min<size_t>(code[0] | (code[1] << 8), sparsity);
                of.unit[i] = 1.0F;
            } else {
                of.unit[i] = scales[code[0]] * (signed4 ? 1.0F / 127 : 1.0F / 448);
            }
        }
        if (!published) {
            find_ones(of.code.data(), of.n_rows, kernel.high_bits(), sparsity, kernel.has_vbmi2(), of.position.data(),
                      of.count.data());
        }
        for (size_t g = 0; g < kernel.n_groups(); ++g) {
            const auto& group = kernel.groups()[g];
            signed4     ? unpack_group<true, true>(group, g, of, offset, coefficient)
            : published ? unpack_group<false, false>(group, g, of, offset, coefficient)
                        : unpack_group<true, false>(group, g, of, offset, coefficient);
        }
        for (size_t i = 0; !signed4 && i < of.n_rows; ++i) {
            const uint8_t* code = of.code[i] + of.coefficient_byte;
            for (size_t k = 0; k < of.stride; ++k) {
                coefficient[i * of.stride + k] = k < of.count[i] ? fp8[code[k]] * of.unit[i] : 0.0F;
            }
        }
        offset += of.n_rows * of.stride;
        coefficient += of.n_rows * of.stride;
    }
}

// L diag(pivot) L^T, the support's Gram matrix in the order of the coefficients. columns [n, kWidth]: of L, below its
// diagonal of ones; what they hold above is arbitrary. One column after the other, so that sums stay in registers where
// there are enough.
template <size_t kWidth>
void factorise(const ToQuantise& of, float* HWY_RESTRICT columns, float* HWY_RESTRICT pivot) {
    const hn::CappedTag<float, kWidth> d;
    constexpr size_t kVectors = kWidth / hn::MaxLanes(d);
    constexpr float kLeastPivot = 1e-6F;      // the pursuit takes no dependent atoms, but nearly so
    HWY_ALIGN float scaled[kWidth * kWidth];  // columns of L times their pivots
    const size_t n = of.n;
    HWY_ALIGN std::array<int32_t, kWidth> order{};
    std::copy_n(of.order, n, order.begin());
    for (size_t b = 0; b < n; ++b) {
        hn::Vec<decltype(d)> sum[kVectors];
        const float* row = of.support.gram + of.order[b] * of.support.stride;
        if constexpr (kVectors == 1) {
            sum[0] = hn::TableLookupLanes(hn::LoadU(d, row), hn::SetTableIndices(d, order.data()));
        } else {
            HWY_ALIGN std::array<float, kWidth> ordered;
            std::ranges::transform(order, ordered.begin(), [row](int32_t i) { return row[i]; });
            for (size_t v = 0; v < kVectors; ++v) {
                sum[v] = hn::Load(d, ordered.data() + v * hn::MaxLanes(d));
            }
        }
        for (size_t c = 0; c < b; ++c) {
            const auto factor = hn::Set(d, columns[c * kWidth + b]);
            for (size_t v = 0; v < kVectors; ++v) {
                sum[v] = hn::NegMulAdd(factor, hn::Load(d, scaled + c * kWidth + v * hn::MaxLanes(d)), sum[v]);
            }
        }
        for (size_t v = 0; v < kVectors; ++v) {
            hn::Store(sum[v], d, scaled + b * kWidth + v * hn::MaxLanes(d));
        }
        pivot[b] = std::max(scaled[b * kWidth + b], kLeastPivot);
        const auto inverse = hn::Set(d, 1.0F / pivot[b]);
        for (size_t v = 0; v < kVectors; ++v) {
            hn::Store(hn::Mul(sum[v], inverse), d, columns + b * kWidth + v * hn::MaxLanes(d));
        }
    }
}

// kWidth: at least the number of coefficients.
template <size_t kWidth>
void quantise_as(const ToQuantise& of, Quantised& quantised) {
    constexpr size_t kLevels = Packing::kLevels;
    const hn::CappedTag<float, kUnits> d;
    const hn::RebindToSigned<decltype(d)> d_int;
    const hn::RebindToUnsigned<decltype(d)> d_bits;
    using V = hn::Vec<decltype(d)>;
    HWY_ALIGN float columns[kWidth * kWidth];
    HWY_ALIGN float pivots[kWidth];
    if (of.support.gram != nullptr) {
        factorise<kWidth>(of, columns, pivots);
    } else {
        std::fill_n(columns, of.n * kWidth, 0.0F);
        std::fill_n(pivots, of.n, 1.0F);
    }
    for (size_t u = 0; u < kUnits; u += hn::Lanes(d)) {
        const V unit = hn::LoadU(d, of.unit.data() + u);
        const auto level = [&](size_t i)
                               HWY_ATTR { return hn::Mul(unit, hn::Set(d, static_cast<float>(of.levels[i]))); };
        V missed[kWidth], bound[kLevels - 1], step[kLevels - 1];
        for (size_t i = 0; i + 1 < kLevels; ++i) {
            bound[i] = hn::Mul(hn::Set(d, 0.5F), hn::Add(level(i), level(i + 1)));
            step[i] = hn::Sub(level(i + 1), level(i));
        }
        V error = hn::Zero(d);
        for (size_t k = of.n; k-- > 0;) {
            const V coefficient = hn::Set(d, of.coefficient[k]);
            V target = coefficient;
            for (size_t j = of.n; --j > k;) {  // what is known last comes last
                target = hn::MulAdd(hn::Set(d, columns[k * kWidth + j]), missed[j], target);
            }
            const V magnitude = hn::Abs(target);
            V value = level(0), more = hn::Zero(d);  // two sums are sooner done than one
            auto code = hn::ShiftLeft<3>(hn::ShiftRight<31>(hn::BitCast(d_bits, target)));  // the sign
            static_assert(kLevels == 1 << 3);
            for (size_t i = 0; i + 1 < kLevels; ++i) {
                const V beyond = hn::VecFromMask(d, hn::Gt(magnitude, bound[i]));
                V& sum = i % 2 == 0 ? value : more;
                sum = hn::Add(sum, hn::And(beyond, step[i]));
                code = hn::Sub(code, hn::BitCast(d_bits, beyond));
            }
            value = hn::CopySign(hn::Add(value, more), target);
            missed[k] = hn::Sub(coefficient, value);
            const V miss = hn::Sub(target, value);
            error = hn::MulAdd(hn::Mul(hn::Set(d, pivots[k]), miss), miss, error);
            hn::StoreU(hn::BitCast(d_int, code), d_int, quantised.code[k].data() + u);
        }
        hn::StoreU(error, d, quantised.error.data() + u);
    }
}

// Codes of the coefficients under each unit of the levels: the largest first, each with what is fitted anew of the
// others' errors, or without products of atoms each for itself.
void quantise(const ToQuantise& of, Quantised& quantised) {
    of.n <= 8    ? quantise_as<8>(of, quantised)
    : of.n <= 16 ? quantise_as<16>(of, quantised)
    : of.n <= 32 ? quantise_as<32>(of, quantised)
                 : quantise_as<kMaxSparsity>(of, quantised);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

constexpr size_t kPublishedHeader = 2;
constexpr size_t kPackedHeader = 1;
constexpr size_t kMaxCodeBytes = 256;  // 64 nonzeros of 8 bits, their indices' 15 low bits and 192 high ones at most

/// The low bits of each index with which indices take the fewest bits.
unsigned best_low_bits(size_t n_atoms, size_t sparsity) {
    unsigned best = 0;
    for (unsigned bits = 1; bits < 16; ++bits) {
        if (sparsity * bits + ((n_atoms - 1) >> bits) < sparsity * best + ((n_atoms - 1) >> best)) {
            best = bits;
        }
    }
    return best;
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

/// Writes fields of bits, one behind the other, over zeros.
class BitWriter {
  public:
    /// From this bit on. Writes up to 8 bytes behind the last field.
    BitWriter(uint8_t* bytes, size_t bit) : to_(bytes + bit / 8), n_bits_(bit % 8), bits_(bytes[bit / 8]) {}

    /// n_bits <= 16, value < 2^n_bits.
    void put(uint32_t value, unsigned n_bits) {
        bits_ |= uint64_t{value} << n_bits_;
        n_bits_ += n_bits;
        if (n_bits_ >= 48) {
            std::memcpy(to_, &bits_, sizeof(bits_));
            to_ += 6;
            bits_ >>= 48;
            n_bits_ -= 48;
        }
    }
    void finish() { std::memcpy(to_, &bits_, sizeof(bits_)); }

  private:
    uint8_t* to_;
    unsigned n_bits_;
    uint64_t bits_;
};

/// order: numbers below n, by ascending key; equal ones as they are. By counting, which compilers make vectors of: few
/// keys, and no branch that depends on them.
void sort_by(const std::array<int32_t, kMaxSparsity>& key, size_t n, std::array<uint8_t, kMaxSparsity>& order) {
    std::array<int32_t, kMaxSparsity> rank;
    for (size_t i = 0; i < n; ++i) {
        int32_t before = 0;
        for (size_t j = 0; j < i; ++j) {
            before += key[j] <= key[i] ? 1 : 0;
        }
        for (size_t j = i + 1; j < n; ++j) {
            before += key[j] < key[i] ? 1 : 0;
        }
        rank[i] = before;
    }
    for (size_t i = 0; i < n; ++i) {
        order[rank[i]] = static_cast<uint8_t>(i);
    }
}

}  // namespace

size_t Packing::code_bytes(size_t n_atoms, size_t sparsity, CoefficientFormat format, CodeLayout layout) {
    if (layout == CodeLayout::kPublished) {
        return 3 * sparsity + 2;
    }
    const size_t coefficient_bits = format == CoefficientFormat::kSigned4 ? 4 : 8;
    const unsigned low_bits = best_low_bits(n_atoms, sparsity);
    return kPackedHeader + (sparsity * (coefficient_bits + low_bits + 1) + ((n_atoms - 1) >> low_bits) + 7) / 8;
}

Packing::Packing(size_t n_atoms, size_t sparsity, CoefficientFormat format, CodeLayout layout,
                 std::span<const float> levels)
    : n_atoms_(n_atoms),
      sparsity_(sparsity),
      stride_((sparsity + IndexGroup::kSize - 1) / IndexGroup::kSize * IndexGroup::kSize),
      format_(layout == CodeLayout::kPublished ? CoefficientFormat::kFp8 : format),
      layout_(layout),
      index_bits_(layout == CodeLayout::kPublished ? 16 : best_low_bits(n_atoms, sparsity)),
      code_bytes_(code_bytes(n_atoms, sparsity, format, layout)),
      coefficient_byte_(layout == CodeLayout::kPublished ? kPublishedHeader : kPackedHeader),
      has_vbmi2_(has_avx512_vnni()) {
    index_bit_ = 8 * coefficient_byte_ + sparsity * (format_ == CoefficientFormat::kSigned4 ? 4 : 8);
    if (layout == CodeLayout::kPacked) {
        high_bits_ = {index_bit_ + sparsity * index_bits_, sparsity + ((n_atoms - 1) >> index_bits_)};
    }
    if (format_ == CoefficientFormat::kSigned4) {
        for (size_t i = 0; i < kLevels; ++i) {
            const auto level = static_cast<int8_t>(std::lround(std::clamp(levels[i], 0.0F, 1.0F) * 127));
            signed_levels_[i] = level;
            signed_levels_[i + kLevels] = static_cast<int8_t>(-level);
        }
    }
    for (size_t first = 0; first < sparsity; first += IndexGroup::kSize) {
        IndexGroup group{};
        const size_t start = index_bit_ + first * index_bits_;
        group.byte = static_cast<uint32_t>(start / 8);
        for (size_t i = 0; i < IndexGroup::kSize; ++i) {
            const size_t bit = start + i * index_bits_;
            group.shift[i] = bit % 8;
            for (size_t byte = 0; byte < 4; ++byte) {
                // Indices end in the 16 bytes that are loaded, as packed ones have 15 bits at most and published ones
                // begin with a byte; of the bytes behind an index nothing is kept.
                group.shuffle[4 * i + byte] = static_cast<uint8_t>((bit / 8 - group.byte + byte) % 16);
            }
        }
        groups_.push_back(group);
    }
}

HWY_EXPORT(quantise);

void Packing::pack(const uint16_t* index, const float* coefficient, size_t count, std::byte* code,
                   SupportGram support) const {
    std::memset(code, 0, code_bytes_);
    float largest = 0;
    for (size_t i = 0; i < count; ++i) {
        largest = std::max(largest, std::abs(coefficient[i]));
    }
    if (largest == 0) {
        return;
    }
    // Codes are neighbours, so that nothing may be written beside them.
    std::array<uint8_t, kMaxCodeBytes + sizeof(uint64_t)> bytes;
    std::memset(bytes.data(), 0, code_bytes_ + sizeof(uint64_t));
    std::array<uint8_t, kMaxSparsity> value, order;
    if (layout_ == CodeLayout::kPublished) {
        bytes[0] = static_cast<uint8_t>(count);
    } else if (format_ == CoefficientFormat::kFp8) {
        bytes[0] = static_cast<uint8_t>(scale_code(largest));
    } else {
        // The scale that codes these coefficients with the least squared error, among the few that can.
        constexpr int kBelow = 3;
        std::array<int32_t, kMaxSparsity> magnitude;  // bits of floats that are not negative order as they do
        for (size_t i = 0; i < count; ++i) {
            magnitude[i] = std::bit_cast<int32_t>(std::abs(coefficient[i]));
        }
        sort_by(magnitude, count, order);
        ToQuantise of{{}, count, {}, signed_levels_.data(), support, order.data()};
        for (size_t k = 0; k < count; ++k) {
            of.coefficient[k] = coefficient[order[k]];
        }
        const int first = std::clamp(scale_code(largest) - kBelow, 0, 255);
        for (size_t u = 0; u < kUnits; ++u) {
            of.unit[u] = scale_table()[std::min<size_t>(255, first + u)] / 127;
        }
        Quantised quantised;
        HWY_DYNAMIC_DISPATCH(quantise)(of, quantised);
        const auto best = static_cast<size_t>(std::ranges::min_element(quantised.error) - quantised.error.begin());
        bytes[0] = static_cast<uint8_t>(std::min<size_t>(255, static_cast<size_t>(first) + best));
        for (size_t k = 0; k < count; ++k) {
            value[order[k]] = static_cast<uint8_t>(quantised.code[k][best]);
        }
    }
    if (format_ == CoefficientFormat::kFp8) {
        const float unit = layout_ == CodeLayout::kPublished ? 1.0F : scale_table()[bytes[0]] / 448;
        for (size_t i = 0; i < count; ++i) {
            value[i] = nearest_fp8(coefficient[i] / unit);
        }
    }
    if (layout_ == CodeLayout::kPacked) {
        std::array<int32_t, kMaxSparsity> atom;
        std::copy_n(index, count, atom.begin());
        sort_by(atom, count, order);
    } else {
        std::iota(order.begin(), order.begin() + count, uint8_t{0});
    }
    const unsigned coefficient_bits = format_ == CoefficientFormat::kSigned4 ? 4 : 8;
    BitWriter values(bytes.data(), 8 * coefficient_byte_);
    for (size_t k = 0; k < count; ++k) {
        values.put(value[order[k]], coefficient_bits);
    }
    values.finish();
    const uint32_t low_mask = (1U << index_bits_) - 1;
    BitWriter indices(bytes.data(), index_bit_);
    for (size_t k = 0; k < count; ++k) {
        indices.put(index[order[k]] & low_mask, index_bits_);
    }
    indices.finish();
    for (size_t k = 0; layout_ == CodeLayout::kPacked && k < count; ++k) {
        const size_t bit = high_bits_.first + (index[order[k]] >> index_bits_) + k;
        bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] | 1U << bit % 8);
    }
    std::memcpy(code, bytes.data(), code_bytes_);
}

HWY_EXPORT(unpack_rows);

void Packing::unpack(const std::byte* codes, std::span<const uint16_t> rows, uint32_t scale, uint32_t* offset,
                     float* coefficient) const {
    HWY_DYNAMIC_DISPATCH(unpack_rows)(*this, codes, rows, scale, offset, coefficient);
}

}  // namespace kvcodec
#endif
