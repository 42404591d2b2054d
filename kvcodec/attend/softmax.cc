#include "kvcodec/attend/softmax.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/attend/softmax.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr uint16_t kHalfMinusInfinity = 0xFC00;

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
    const auto rescale = hn::IfThenElseZero(old > minus_infinity, hn::Exp(d, old - base));
    auto total = hn::LoadU(d, sum) * rescale;
    for (size_t i = 0; i < m; ++i) {
        const auto x = hn::LoadU(d, s + i * lanes);
        const auto e = hn::IfThenElseZero(x > minus_infinity, hn::Exp(d, x - base));
        hn::StoreU(e, d, s + i * lanes);
        total = total + e;
    }
    hn::StoreU(top, d, max);
    hn::StoreU(total, d, sum);
    hn::StoreU(rescale, d, correction);
    return !hn::AllTrue(d, rescale == hn::Set(d, 1.0F));
}

// Four lanes only: whole vectors hold several cells, so that the exponentials fill them.
HWY_INLINE bool step_four_lanes(float* s, size_t m, float* max, float* sum, float* correction) {
    const hn::CappedTag<float, 4> d4;
    const hn::ScalableTag<float> d;
    const size_t width = hn::Lanes(d);
    auto top = hn::LoadU(d4, max);
    const auto old = top;
    for (size_t i = 0; i < m; ++i) {
        top = hn::Max(top, hn::LoadU(d4, s + 4 * i));
    }
    const auto minus_infinity = hn::Set(d4, -INFINITY);
    const auto base = hn::IfThenElse(top == minus_infinity, hn::Zero(d4), top);
    const auto rescale = hn::IfThenElseZero(old > minus_infinity, hn::Exp(d4, old - base));
    alignas(64) float bases[HWY_MAX_BYTES / sizeof(float)];
    for (size_t i = 0; i < width; i += 4) {
        hn::StoreU(base, d4, bases + i);
    }
    const auto wide_base = hn::LoadU(d, bases);
    size_t i = 0;
    auto wide_total = hn::Zero(d);
    for (; i + width <= 4 * m; i += width) {
        const auto x = hn::LoadU(d, s + i);
        const auto e = hn::IfThenElseZero(x > hn::Set(d, -INFINITY), hn::Exp(d, x - wide_base));
        hn::StoreU(e, d, s + i);
        wide_total = wide_total + e;
    }
    alignas(64) float totals[HWY_MAX_BYTES / sizeof(float)];
    hn::StoreU(wide_total, d, totals);
    auto total = hn::LoadU(d4, sum) * rescale;
    for (size_t part = 0; part < width; part += 4) {
        total = total + hn::LoadU(d4, totals + part);
    }
    for (; i < 4 * m; i += 4) {
        const auto x = hn::LoadU(d4, s + i);
        const auto e = hn::IfThenElseZero(x > minus_infinity, hn::Exp(d4, x - base));
        hn::StoreU(e, d4, s + i);
        total = total + e;
    }
    hn::StoreU(top, d4, max);
    hn::StoreU(total, d4, sum);
    hn::StoreU(rescale, d4, correction);
    return !hn::AllTrue(d4, rescale == hn::Set(d4, 1.0F));
}

bool step_all(float* s, size_t m, size_t lanes, float* max, float* sum, float* correction) {
    if (lanes == 4) {
        return step_four_lanes(s, m, max, sum, correction);
    }
    const hn::ScalableTag<float> wide;
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

MaskKind classify(const uint16_t* mask, size_t n) {
    if (count_not_hidden(mask, n) == 0) {
        return MaskKind::kHidden;
    }
    uint16_t any = 0;
    for (size_t i = 0; i < n; ++i) {
        any |= mask[i];
    }
    return any == 0 ? MaskKind::kOpen : MaskKind::kMixed;
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

size_t count_visible(const uint16_t* mask, size_t n) {
    return HWY_DYNAMIC_DISPATCH(count_not_hidden)(mask, n);
}

size_t count_visible(const uint16_t* mask, const uint8_t* chosen, size_t n) {
    return HWY_DYNAMIC_DISPATCH(count_chosen_not_hidden)(mask, chosen, n);
}

}  // namespace kvcodec
#endif
