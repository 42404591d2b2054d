#include "kvcodec/half_rows.h"

#include "kvcodec/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/half_rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Without F16C, Highway's own conversion knows no infinities and truncates.
constexpr bool kExactHalf = !HWY_ARCH_X86 || HWY_TARGET < HWY_SSE4;

void widen_row(const uint16_t* half, size_t n, float* wide) {
    const hn::ScalableTag<float> d;
    const hn::Rebind<hwy::float16_t, decltype(d)> dh;
    size_t i = 0;
    for (; kExactHalf && i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
        hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(half + i))), d, wide + i);
    }
    for (; i < n; ++i) {
        wide[i] = half_to_float(half[i]);
    }
}

void narrow_row(const float* wide, size_t n, uint16_t* half) {
    const hn::ScalableTag<float> d;
    const hn::Rebind<hwy::float16_t, decltype(d)> dh;
    size_t i = 0;
    for (; kExactHalf && i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
        hn::StoreU(hn::DemoteTo(dh, hn::LoadU(d, wide + i)), dh, reinterpret_cast<hwy::float16_t*>(half + i));
    }
    for (; i < n; ++i) {
        half[i] = float_to_half(wide[i]);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(widen_row);
HWY_EXPORT(narrow_row);

}  // namespace

void widen(const uint16_t* half, size_t n, float* wide) {
    HWY_DYNAMIC_DISPATCH(widen_row)(half, n, wide);
}

void narrow(const float* wide, size_t n, uint16_t* half) {
    HWY_DYNAMIC_DISPATCH(narrow_row)(wide, n, half);
}

}  // namespace kvcodec
#endif
