// Sums over float vectors of any length and alignment. Included once per SIMD target, from inside its namespace's file.
#if defined(KVCODEC_VECTOR_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCODEC_VECTOR_INL_H
#undef KVCODEC_VECTOR_INL_H
#else
#define KVCODEC_VECTOR_INL_H
#endif

#include <cstddef>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {

// a . b
HWY_INLINE float dot(const float* a, const float* b, size_t n) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::ScalableTag<float> d;
    const size_t lanes = hn::Lanes(d);
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    size_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
        sum0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum0);
        sum1 = hn::MulAdd(hn::LoadU(d, a + i + lanes), hn::LoadU(d, b + i + lanes), sum1);
    }
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
    for (; i < n; ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}

// y += factor * x
HWY_INLINE void add_multiple(float factor, const float* x, size_t n, float* y) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::ScalableTag<float> d;
    const size_t lanes = hn::Lanes(d);
    const auto f = hn::Set(d, factor);
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        hn::StoreU(hn::MulAdd(f, hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
    }
    for (; i < n; ++i) {
        y[i] += factor * x[i];
    }
}

// ||x||^2, also where float would overflow.
HWY_INLINE double energy_of(const float* x, size_t dim) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::ScalableTag<double> wide_tag;
    const hn::Rebind<float, decltype(wide_tag)> narrow_tag;
    const size_t width = hn::Lanes(wide_tag);
    auto sum = hn::Zero(wide_tag);
    size_t i = 0;
    for (; i + width <= dim; i += width) {
        const auto wide = hn::PromoteTo(wide_tag, hn::LoadU(narrow_tag, x + i));
        sum = hn::MulAdd(wide, wide, sum);
    }
    double energy = hn::GetLane(hn::SumOfLanes(wide_tag, sum));
    for (; i < dim; ++i) {
        energy += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    return energy;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
