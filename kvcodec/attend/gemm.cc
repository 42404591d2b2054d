#include "kvcodec/attend/gemm.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/attend/gemm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "kvcodec/codec/level_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Element (row, step) of the broadcast operand lies at a[row * row_stride + step * step_stride].
struct Operand {
    const float* a;
    size_t row_stride;
    size_t step_stride;
};

// kRows rows x kVectors vectors of lanes stay in registers over all steps.
template <size_t kRows, size_t kVectors, bool kAdd, class D>
HWY_INLINE void tile(D d, Operand x, size_t row, size_t steps, const float* HWY_RESTRICT b, size_t lanes,
                     float* HWY_RESTRICT c) {
    using V = hn::Vec<D>;
    const size_t width = hn::Lanes(d);
    V sum[kRows][kVectors];
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t v = 0; v < kVectors; ++v) {
            sum[r][v] = kAdd ? hn::LoadU(d, c + (row + r) * lanes + v * width) : hn::Zero(d);
        }
    }
    const float* HWY_RESTRICT a = x.a + row * x.row_stride;
    for (size_t step = 0; step < steps; ++step) {
        V lane[kVectors];
        for (size_t v = 0; v < kVectors; ++v) {
            lane[v] = hn::LoadU(d, b + step * lanes + v * width);
        }
        for (size_t r = 0; r < kRows; ++r) {
            const V factor = hn::Set(d, a[r * x.row_stride + step * x.step_stride]);
            for (size_t v = 0; v < kVectors; ++v) {
                sum[r][v] = hn::MulAdd(factor, lane[v], sum[r][v]);
            }
        }
    }
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t v = 0; v < kVectors; ++v) {
            hn::StoreU(sum[r][v], d, c + (row + r) * lanes + v * width);
        }
    }
}

template <size_t kVectors, bool kAdd, class D>
HWY_INLINE void column(D d, Operand x, size_t rows, size_t steps, const float* b, size_t lanes, float* c) {
    // 8 x 2 accumulators need the 32 registers of AVX-512; 4 x 2 fit AVX2 and NEON.
    constexpr size_t kTall = HWY_MAX_BYTES >= 64 ? 8 : 4;
    size_t row = 0;
    for (; row + kTall <= rows; row += kTall) {
        tile<kTall, kVectors, kAdd>(d, x, row, steps, b, lanes, c);
    }
    for (; row < rows; ++row) {
        tile<1, kVectors, kAdd>(d, x, row, steps, b, lanes, c);
    }
}

template <bool kAdd>
HWY_INLINE void product(Operand x, size_t rows, size_t steps, const float* b, size_t lanes, float* c) {
    const hn::ScalableTag<float> wide;
    const hn::CappedTag<float, 4> narrow;
    const size_t width = hn::Lanes(wide);
    size_t lane = 0;
    for (; lane + 2 * width <= lanes; lane += 2 * width) {
        column<2, kAdd>(wide, x, rows, steps, b + lane, lanes, c + lane);
    }
    for (; lane + width <= lanes; lane += width) {
        column<1, kAdd>(wide, x, rows, steps, b + lane, lanes, c + lane);
    }
    for (; lane < lanes; lane += hn::Lanes(narrow)) {
        column<1, kAdd>(narrow, x, rows, steps, b + lane, lanes, c + lane);
    }
}

void scores(const float* a, size_t m, size_t k, const float* b, size_t lanes, float* c) {
    // Fewer lanes than a vector has elements would leave most of it empty.
    if (lanes < hn::Lanes(level_rows::Wide()) && k % 16 == 0 && k <= level_rows::kMaxDim) {
        HWY_ALIGN float tile[level_rows::kLaneTile * level_rows::kMaxDim];
        for (size_t lane = 0; lane < lanes; lane += level_rows::kLaneTile) {
            level_rows::transpose_tile(b + lane, lanes, k, tile);
            for (size_t row = 0; row < m; row += 2) {
                const size_t next = std::min(row + 1, m - 1);
                level_rows::score_pair(tile, k, a + row * k, a + next * k, 1.0F, 1.0F, c + row * lanes + lane,
                                       c + next * lanes + lane);
            }
        }
        return;
    }
    product<false>({a, k, 1}, m, k, b, lanes, c);
}

void values(const float* v, size_t m, size_t k, const float* p, size_t lanes, float* o) {
    product<true>({v, 1, k}, k, m, p, lanes, o);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {

HWY_EXPORT(scores);
HWY_EXPORT(values);

void gemm_scores(const float* a, size_t m, size_t k, const float* b, size_t lanes, float* c) {
    HWY_DYNAMIC_DISPATCH(scores)(a, m, k, b, lanes, c);
}

void gemm_values(const float* v, size_t m, size_t k, const float* p, size_t lanes, float* o) {
    HWY_DYNAMIC_DISPATCH(values)(v, m, k, p, lanes, o);
}

}  // namespace kvcodec
#endif
