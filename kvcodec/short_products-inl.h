// Products of 16-bit integers, summed in 32 bits. Included once per SIMD target, from inside its namespace's file.
#if defined(KVCODEC_SHORT_PRODUCTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCODEC_SHORT_PRODUCTS_INL_H
#undef KVCODEC_SHORT_PRODUCTS_INL_H
#else
#define KVCODEC_SHORT_PRODUCTS_INL_H
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <hwy/highway.h>

// Newer AVX-512 adds products of two shorts in one instruction (VNNI). Highway has no target for it here. Not by
// intrinsics: these would need a target too, and GCC 12 copies all sums around a product.
#undef KVCODEC_SHORT_PRODUCTS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define KVCODEC_SHORT_PRODUCTS 1
#else
#define KVCODEC_SHORT_PRODUCTS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace short_products {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using IntTag = hn::RebindToSigned<FloatTag>;
using ShortTag = hn::Repartition<int16_t, FloatTag>;
using HalfShortTag = hn::Rebind<int16_t, FloatTag>;  // as many as there are floats in a vector

/// The norm of a vector in 16 bits: sums of products of two such vectors, in part or whole, stay near its square, half
/// of what 32 bits hold.
constexpr float kUnitLevel = 32767.0F;

constexpr size_t pairs(size_t n) {
    return (n + 1) / 2;
}

/// sum + rest += a . b, two products each; rest is unused where one instruction adds pairs, as on x86. kVnni: by one
/// instruction, where has_avx512_vnni() says that there is one.
template <bool kVnni>
HWY_INLINE void add_products(hn::Vec<ShortTag> a, hn::Vec<ShortTag> b, hn::Vec<IntTag>& sum,
                             [[maybe_unused]] hn::Vec<IntTag>& rest) {
#if KVCODEC_SHORT_PRODUCTS
    if constexpr (kVnni) {
        asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
        return;
    }
#endif
    sum = hn::ReorderWidenMulAccumulate(IntTag(), a, b, sum, rest);
}

/// Each lane: low in its lower 16 bits, high in the upper ones.
HWY_INLINE hn::Vec<IntTag> make_pairs(hn::Vec<IntTag> low, hn::Vec<IntTag> high) {
    return hn::Or(hn::ShiftLeft<16>(high), hn::And(low, hn::Set(IntTag(), 0xFFFF)));
}

/// The same of numbers, which are rounded.
inline int32_t make_pair(float low, float high) {
    const auto bits_of = [](float x) { return static_cast<uint32_t>(static_cast<uint16_t>(std::lrint(x))); };
    return static_cast<int32_t>(bits_of(low) | bits_of(high) << 16U);
}

/// to[pairs(dim)]: scale * x in 16 bits, two elements each.
inline HWY_ATTR void round_pairs(const float* x, size_t dim, float scale, int32_t* to) {
    const FloatTag d;
    const HalfShortTag shorts;
    const hn::Repartition<int32_t, HalfShortTag> pair_tag;
    size_t i = 0;
    for (; i + hn::Lanes(d) <= dim; i += hn::Lanes(d)) {
        const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)));
        hn::StoreU(hn::BitCast(pair_tag, hn::DemoteTo(shorts, rounded)), pair_tag, to + i / 2);
    }
    for (; i < dim; i += 2) {
        to[i / 2] = make_pair(x[i] * scale, i + 1 < dim ? x[i + 1] * scale : 0.0F);
    }
}

}  // namespace short_products
}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();
#undef KVCODEC_SHORT_PRODUCTS

#endif  // per-target include guard
