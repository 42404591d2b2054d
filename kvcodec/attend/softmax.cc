#include "kvcodec/attend/softmax.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/attend/softmax.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr uint16_t kHalfMinusInfinity = 0xFC00;

// e^x for x <= 0 within 3e-7 of its size, 0 below e^-87 and for NaN. With n the integer nearest x / ln 2, it is 2^n
// e^r; e^r comes from the polynomial of degree 5 whose largest error, where |r| < ln 2 / 2, is least (10^-7).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_below_one(D d, V x) {
    const hn::RebindToSigned<D> integers;
    const auto shift_out = hn::Set(d, 12582912.0F);  // 1.5 * 2^23: a sum with it ends where integers do
    const auto shifted = hn::MulAdd(x, hn::Set(d, 1.44269504F), shift_out);
    const auto n = shifted - shift_out;
    // ln 2 in two parts, the first so short that its product is exact.
    const auto r = hn::MulAdd(n, hn::Set(d, 2.12194440e-4F), hn::NegMulAdd(n, hn::Set(d, 0.693359375F), x));
    auto p = hn::MulAdd(r, hn::Set(d, 0.00837450811F), hn::Set(d, 0.0418983149F));
    p = hn::MulAdd(p, r, hn::Set(d, 0.166664587F));
    p = hn::MulAdd(p, r, hn::Set(d, 0.499991466F));
    p = hn::MulAdd(p, r * r, r) + hn::Set(d, 1.0F);
    const auto power = hn::ShiftLeft<23>(hn::BitCast(integers, shifted));
    return hn::IfThenElseZero(x > hn::Set(d, -87.0F), hn::BitCast(d, hn::BitCast(integers, p) + power));
}

void mask_scores(float* s, size_t n, float scale, float softcap, const float* bias) {
    const hn::ScalableTag<float> wide;
    const hn::CappedTag<float, 4> narrow;
    if (softcap != 0) {
        for (size_t i = 0; i < n; ++i) {
            s[i] = softcap * std::tanh(s[i] * scale / softcap);
        }
        scale = 1;
    }
    const auto step = [&](auto d, size_t i) HWY_ATTR {
        auto x = hn::LoadU(d, s + i) * hn::Set(d, scale);
        if (bias != nullptr) {
            x = x + hn::LoadU(d, bias + i);
        }
        hn::StoreU(x, d, s + i);
    };
    size_t i = 0;
    for (; i + hn::Lanes(wide) <= n; i += hn::Lanes(wide)) {
        step(wide, i);
    }
    for (; i < n; i += hn::Lanes(narrow)) {
        step(narrow, i);
    }
}

// One column of lanes as wide as D.
template <class D>
HWY_INLINE bool step_column(D d, float* s, size_t m, size_t lanes, float* max, float* sum, float* correction) {
    const auto minus_infinity = hn::Set(d, -INFINITY);
    const auto old = hn::LoadU(d, max);
    auto top = old;
    for (size_t i = 0; i < m; ++i) {
        top = hn::Max(top, hn::LoadU(d, s + i * lanes));
    }
    // A lane that has seen nothing yet: subtracting 0 instead of -inf keeps exp(-inf - 0) = 0 and avoids NaN.
    const auto base = hn::IfThenElse(top == minus_infinity, hn::Zero(d), top);
    const auto rescale = exp_below_one(d, old - base);
    auto total = hn::LoadU(d, sum) * rescale;
    for (size_t i = 0; i < m; ++i) {
        const auto x = hn::LoadU(d, s + i * lanes);
        const auto e = exp_below_one(d, x - base);
        hn::StoreU(e, d, s + i * lanes);
        total = total + e;
    }
    hn::StoreU(top, d, max);
    hn::StoreU(total, d, sum);
    hn::StoreU(rescale, d, correction);
    return !hn::AllTrue(d, rescale == hn::Set(d, 1.0F));
}

// Lanes that whole vectors hold once or more: of several cells, so that the exponentials fill them.
HWY_INLINE bool step_few_lanes(float* s, size_t m, size_t lanes, float* max, float* sum, float* correction) {
    const hn::CappedTag<float, 4> quad;
    const hn::ScalableTag<float> d;
    constexpr size_t kMaxWidth = HWY_MAX_BYTES / sizeof(float);
    const size_t width = hn::Lanes(d);
    const size_t n = m * lanes;
    const size_t n_wide = n / width * width;
    const auto minus_infinity = hn::Set(d, -INFINITY);
    alignas(64) float buffer[kMaxWidth];
    alignas(64) float bases[kMaxWidth];

    auto top_even = minus_infinity;  // two chains: a maximum takes longer than a load
    auto top_odd = minus_infinity;
    size_t i = 0;
    for (; i + 2 * width <= n; i += 2 * width) {
        top_even = hn::Max(top_even, hn::LoadU(d, s + i));
        top_odd = hn::Max(top_odd, hn::LoadU(d, s + i + width));
    }
    if (i < n_wide) {
        top_even = hn::Max(top_even, hn::LoadU(d, s + i));
    }
    hn::Store(hn::Max(top_even, top_odd), d, buffer);
    bool changed = false;
    for (size_t lane = 0; lane < lanes; lane += hn::Lanes(quad)) {
        const auto old = hn::LoadU(quad, max + lane);
        auto top = old;
        for (size_t part = lane; part < width; part += lanes) {
            top = hn::Max(top, hn::LoadU(quad, buffer + part));
        }
        for (size_t k = n_wide + lane; k < n; k += lanes) {
            top = hn::Max(top, hn::LoadU(quad, s + k));
        }
        // A lane that has seen nothing yet: subtracting 0 instead of -inf keeps exp(-inf - 0) = 0 and avoids NaN.
        const auto base = hn::IfThenElse(top == hn::Set(quad, -INFINITY), hn::Zero(quad), top);
        const auto rescale = exp_below_one(quad, old - base);
        for (size_t part = lane; part < width; part += lanes) {
            hn::StoreU(base, quad, bases + part);
        }
        hn::StoreU(top, quad, max + lane);
        hn::StoreU(rescale, quad, correction + lane);
        hn::StoreU(hn::LoadU(quad, sum + lane) * rescale, quad, sum + lane);
        changed |= !hn::AllTrue(quad, rescale == hn::Set(quad, 1.0F));
    }

    const auto base = hn::Load(d, bases);
    auto total = hn::Zero(d);
    for (i = 0; i < n_wide; i += width) {
        const auto x = hn::LoadU(d, s + i);
        const auto e = exp_below_one(d, x - base);
        hn::StoreU(e, d, s + i);
        total = total + e;
    }
    hn::Store(total, d, buffer);
    for (size_t lane = 0; lane < lanes; lane += hn::Lanes(quad)) {
        auto lane_total = hn::LoadU(quad, sum + lane);
        for (size_t part = lane; part < width; part += lanes) {
            lane_total = lane_total + hn::LoadU(quad, buffer + part);
        }
        for (size_t k = n_wide + lane; k < n; k += lanes) {
            const auto x = hn::LoadU(quad, s + k);
            const auto e = exp_below_one(quad, x - hn::LoadU(quad, bases + lane));
            hn::StoreU(e, quad, s + k);
            lane_total = lane_total + e;
        }
        hn::StoreU(lane_total, quad, sum + lane);
    }
    return changed;
}

bool step_all(float* s, size_t m, size_t lanes, float* max, float* sum, float* correction) {
    const hn::ScalableTag<float> wide;
    if (hn::Lanes(wide) % lanes == 0 && lanes % 4 == 0) {
        return step_few_lanes(s, m, lanes, max, sum, correction);
    }
    const hn::CappedTag<float, 4> narrow;
    bool changed = false;
    size_t lane = 0;
    for (; lane + hn::Lanes(wide) <= lanes; lane += hn::Lanes(wide)) {
        changed |= step_column(wide, s + lane, m, lanes, max + lane, sum + lane, correction + lane);
    }
    for (; lane < lanes; lane += hn::Lanes(narrow)) {
        changed |= step_column(narrow, s + lane, m, lanes, max + lane, sum + lane, correction + lane);
    }
    return changed;
}

void multiply_lanes(float* x, size_t rows, size_t lanes, const float* factor) {
    const hn::ScalableTag<float> wide;
    const hn::CappedTag<float, 4> narrow;
    const size_t width = hn::Lanes(wide);
    if (width > lanes && width % lanes == 0) {  // a vector holds several rows
        alignas(64) float repeated[HWY_MAX_BYTES / sizeof(float)];
        for (size_t i = 0; i < width; ++i) {
            repeated[i] = factor[i % lanes];
        }
        const auto factors = hn::Load(wide, repeated);
        const size_t n = rows * lanes;
        size_t i = 0;
        for (; i + width <= n; i += width) {
            hn::StoreU(hn::LoadU(wide, x + i) * factors, wide, x + i);
        }
        for (; i < n; ++i) {
            x[i] *= factor[i % lanes];
        }
        return;
    }
    for (size_t row = 0; row < rows; ++row, x += lanes) {
        size_t lane = 0;
        for (; lane + hn::Lanes(wide) <= lanes; lane += hn::Lanes(wide)) {
            hn::StoreU(hn::LoadU(wide, x + lane) * hn::LoadU(wide, factor + lane), wide, x + lane);
        }
        for (; lane < lanes; lane += hn::Lanes(narrow)) {
            hn::StoreU(hn::LoadU(narrow, x + lane) * hn::LoadU(narrow, factor + lane), narrow, x + lane);
        }
    }
}

size_t count_not_hidden(const uint16_t* mask, size_t n) {
    const hn::ScalableTag<uint16_t> d;
    const auto hidden = hn::Set(d, kHalfMinusInfinity);
    size_t count = 0;
    size_t i = 0;
    for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
        count += hn::Lanes(d) - hn::CountTrue(d, hn::LoadU(d, mask + i) == hidden);
    }
    for (; i < n; ++i) {
        count += mask[i] != kHalfMinusInfinity ? 1 : 0;
    }
    return count;
}

size_t count_chosen_not_hidden(const uint16_t* mask, const uint8_t* chosen, size_t n) {
    const hn::ScalableTag<uint16_t> d;
    const hn::Rebind<uint8_t, decltype(d)> bytes;
    const auto hidden = hn::Set(d, kHalfMinusInfinity);
    const auto zero = hn::Zero(d);
    size_t count = 0;
    size_t i = 0;
    for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
        const auto is_chosen = hn::PromoteTo(d, hn::LoadU(bytes, chosen + i)) != zero;
        count += hn::CountTrue(d, hn::And(is_chosen, hn::LoadU(d, mask + i) != hidden));
    }
    for (; i < n; ++i) {
        count += chosen[i] != 0 && mask[i] != kHalfMinusInfinity ? 1 : 0;
    }
    return count;
}

bool are_zero(const uint16_t* masks, size_t stride, size_t n_rows, size_t n) {
    const hn::ScalableTag<uint16_t> d;
    auto any = hn::Zero(d);
    uint16_t any_of_rest = 0;
    for (size_t row = 0; row < n_rows; ++row, masks += stride) {
        size_t i = 0;
        for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
            any = hn::Or(any, hn::LoadU(d, masks + i));
        }
        for (; i < n; ++i) {
            any_of_rest |= masks[i];
        }
        if (any_of_rest != 0 || !hn::AllTrue(d, any == hn::Zero(d))) {
            return false;
        }
    }
    return true;
}

MaskKind classify(const uint16_t* mask, size_t n) {
    if (count_not_hidden(mask, n) == 0) {
        return MaskKind::kHidden;
    }
    return are_zero(mask, n, 1, n) ? MaskKind::kOpen : MaskKind::kMixed;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {

HWY_EXPORT(mask_scores);
HWY_EXPORT(step_all);
HWY_EXPORT(multiply_lanes);
HWY_EXPORT(count_not_hidden);
HWY_EXPORT(count_chosen_not_hidden);
HWY_EXPORT(are_zero);
HWY_EXPORT(classify);

void scale_and_mask(float* s, size_t m, size_t lanes, float scale, float softcap, const float* bias) {
    HWY_DYNAMIC_DISPATCH(mask_scores)(s, m * lanes, scale, softcap, bias);
}

bool softmax_step(float* s, size_t m, size_t lanes, float* max, float* sum, float* correction) {
    return HWY_DYNAMIC_DISPATCH(step_all)(s, m, lanes, max, sum, correction);
}

void scale_lanes(float* x, size_t rows, size_t lanes, const float* factor) {
    HWY_DYNAMIC_DISPATCH(multiply_lanes)(x, rows, lanes, factor);
}

MaskKind classify_mask(const uint16_t* mask, size_t n) {
    return HWY_DYNAMIC_DISPATCH(classify)(mask, n);
}

bool all_open(const uint16_t* masks, size_t stride, size_t n_rows, size_t n) {
    return HWY_DYNAMIC_DISPATCH(are_zero)(masks, stride, n_rows, n);
}

size_t count_visible(const uint16_t* mask, size_t n) {
    return HWY_DYNAMIC_DISPATCH(count_not_hidden)(mask, n);
}

size_t count_visible(const uint16_t* mask, const uint8_t* chosen, size_t n) {
    return HWY_DYNAMIC_DISPATCH(count_chosen_not_hidden)(mask, chosen, n);
}

}  // namespace kvcodec
#endif
