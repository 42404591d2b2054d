#include "kvcodec/attend/short_gemm.h"

#include <algorithm>
#include <cmath>

#include "kvcodec/attend/tile.h"
#include "kvcodec/target.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/attend/short_gemm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "kvcodec/short_products-inl.h"
#include "kvcodec/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using short_products::FloatTag;
using short_products::IntTag;
using short_products::kUnitLevel;
using short_products::make_pairs;
using short_products::pairs;
using short_products::ShortTag;

constexpr size_t kWidth = hn::MaxLanes(FloatTag());
// Rows of a tile: with two vectors of lanes each, their sums fill 16 of 32 registers or 8 of 16.
constexpr size_t kRows = HWY_MAX_BYTES >= 64 ? 8 : 4;

// Below this, squares lose bits or vanish: such a vector counts as zero.
constexpr float kLeastNorm = 1e-18F;

// What a level is worth where a norm is to be kUnitLevel, and how many levels 1 is.
HWY_INLINE void units_of(hn::Vec<FloatTag> norm, hn::Vec<FloatTag>& unit, hn::Vec<FloatTag>& per_unit) {
    const FloatTag d;
    unit = norm * hn::Set(d, 1.0F / kUnitLevel);
    per_unit = hn::IfThenElseZero(norm > hn::Set(d, kLeastNorm), hn::Set(d, kUnitLevel) / norm);
}

// The same of one number. Returns the unit.
HWY_INLINE float unit_of(float norm, float& per_unit) {
    per_unit = norm > kLeastNorm ? kUnitLevel / norm : 0.0F;
    return norm / kUnitLevel;
}

// Norms of a vector's lanes over the rows of x [n, lanes].
HWY_INLINE hn::Vec<FloatTag> norms_of(const float* x, size_t n, size_t lanes) {
    const FloatTag d;
    auto energy = hn::Zero(d);
    for (size_t i = 0; i < n; ++i) {
        const auto value = hn::LoadU(d, x + i * lanes);
        energy = hn::MulAdd(value, value, energy);
    }
    return hn::Sqrt(energy);
}

// A vector's lanes of x [n, lanes] as pairs of rows, each lane times its factor. Returns the sums of the levels.
HWY_INLINE hn::Vec<IntTag> round_column(const float* x, size_t n, size_t lanes, hn::Vec<FloatTag> factor, int32_t* to) {
    const FloatTag d;
    auto sum = hn::Zero(IntTag());
    for (size_t i = 0; i < n; i += 2) {
        const auto low = hn::NearestInt(hn::LoadU(d, x + i * lanes) * factor);
        const auto high = i + 1 < n ? hn::NearestInt(hn::LoadU(d, x + (i + 1) * lanes) * factor) : hn::Zero(IntTag());
        hn::StoreU(make_pairs(low, high), IntTag(), to + i / 2 * lanes);
        sum = sum + low + high;
    }
    return sum;
}

// x [n, lanes] as pairs of rows, each lane by its norm.
void round_lanes(const float* x, size_t n, size_t lanes, int32_t* to, float* unit) {
    size_t lane = 0;
    for (; lane + kWidth <= lanes; lane += kWidth) {
        hn::Vec<FloatTag> lane_unit, per_unit;
        units_of(norms_of(x + lane, n, lanes), lane_unit, per_unit);
        hn::StoreU(lane_unit, FloatTag(), unit + lane);
        round_column(x + lane, n, lanes, per_unit, to + lane);
    }
    for (; lane < lanes; ++lane) {  // of values: queries come in whole vectors
        float energy = 0.0F;
        for (size_t i = 0; i < n; ++i) {
            energy += x[i * lanes + lane] * x[i * lanes + lane];
        }
        float per_unit;
        unit[lane] = unit_of(std::sqrt(energy), per_unit);
        for (size_t i = 0; i < n; i += 2) {
            const float high = i + 1 < n ? x[(i + 1) * lanes + lane] * per_unit : 0.0F;
            to[i / 2 * lanes + lane] = short_products::make_pair(x[i * lanes + lane] * per_unit, high);
        }
    }
}

void round_keys(const float* a, size_t m, size_t k, int32_t* to, float* unit) {
    for (size_t row = 0; row < m; ++row) {
        float per_unit;
        unit[row] = unit_of(std::sqrt(dot(a + row * k, a + row * k, k)), per_unit);
        short_products::round_pairs(a + row * k, k, per_unit, to + row * pairs(k));
    }
}

void round_weights(const float* p, size_t m, size_t lanes, int32_t* to, float* unit) {
    const FloatTag d;
    for (size_t lane = 0; lane < lanes; lane += kWidth) {
        auto total = hn::Zero(d);
        for (size_t i = 0; i < m; ++i) {
            total = total + hn::LoadU(d, p + i * lanes + lane);
        }
        hn::Vec<FloatTag> lane_unit, per_unit;
        units_of(norms_of(p + lane, m, lanes), lane_unit, per_unit);
        const auto levels = hn::ConvertTo(d, round_column(p + lane, m, lanes, per_unit, to + lane));
        // Weights that are all alike are all rounded alike: their sum is to be right.
        hn::StoreU(hn::IfThenElse(levels > hn::Zero(d), total / levels, lane_unit), d, unit + lane);
    }
}

// The broadcast operand: the pair of row `row` and step `step` lies at a[row * row_stride + step * step_stride].
struct PairOperand {
    const int32_t* a;
    size_t row_stride;
    size_t step_stride;
};

// c[row, lanes] = or, kAdd, += (a . b) row_unit[row] lane_unit[lane], for R rows and kVectors vectors of lanes.
template <bool kVnni, bool kAdd, size_t R, size_t kVectors>
HWY_INLINE void short_tile(PairOperand x, size_t row, size_t steps, const int32_t* HWY_RESTRICT b, size_t lanes,
                           const float* row_unit, const float* lane_unit, float* HWY_RESTRICT c) {
    const FloatTag d;
    hn::Vec<IntTag> sum[R][kVectors], rest[R][kVectors];
    for (size_t r = 0; r < R; ++r) {
        for (size_t v = 0; v < kVectors; ++v) {
            sum[r][v] = rest[r][v] = hn::Zero(IntTag());
        }
    }
    const int32_t* HWY_RESTRICT a = x.a + row * x.row_stride;
    for (size_t step = 0; step < steps; ++step) {
        hn::Vec<ShortTag> lane[kVectors];
        for (size_t v = 0; v < kVectors; ++v) {
            lane[v] = hn::BitCast(ShortTag(), hn::LoadU(IntTag(), b + step * lanes + v * kWidth));
        }
        for (size_t r = 0; r < R; ++r) {
            const auto factor = hn::BitCast(ShortTag(), hn::Set(IntTag(), a[r * x.row_stride + step * x.step_stride]));
            for (size_t v = 0; v < kVectors; ++v) {
                short_products::add_products<kVnni>(factor, lane[v], sum[r][v], rest[r][v]);
            }
        }
    }
    for (size_t v = 0; v < kVectors; ++v) {
        const auto of_lanes = hn::LoadU(d, lane_unit + v * kWidth);
        for (size_t r = 0; r < R; ++r) {
            const auto total = hn::ConvertTo(d, hn::RearrangeToOddPlusEven(sum[r][v], rest[r][v]));
            const auto unit = of_lanes * hn::Set(d, row_unit[row + r]);
            float* to = c + (row + r) * lanes + v * kWidth;
            hn::StoreU(kAdd ? hn::MulAdd(total, unit, hn::LoadU(d, to)) : total * unit, d, to);
        }
    }
}

template <bool kVnni, bool kAdd, size_t kVectors>
HWY_INLINE void short_column(PairOperand x, size_t rows, size_t steps, const int32_t* b, size_t lanes,
                             const float* row_unit, const float* lane_unit, float* c) {
    size_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
        short_tile<kVnni, kAdd, kRows, kVectors>(x, row, steps, b, lanes, row_unit, lane_unit, c);
    }
    for (; row < rows; ++row) {
        short_tile<kVnni, kAdd, 1, kVectors>(x, row, steps, b, lanes, row_unit, lane_unit, c);
    }
}

template <bool kVnni, bool kAdd>
HWY_INLINE void short_product(PairOperand x, size_t rows, size_t steps, const int32_t* b, size_t lanes,
                              const float* row_unit, const float* lane_unit, float* c) {
    size_t lane = 0;
    for (; lane + 2 * kWidth <= lanes; lane += 2 * kWidth) {
        short_column<kVnni, kAdd, 2>(x, rows, steps, b + lane, lanes, row_unit, lane_unit + lane, c + lane);
    }
    for (; lane < lanes; lane += kWidth) {
        short_column<kVnni, kAdd, 1>(x, rows, steps, b + lane, lanes, row_unit, lane_unit + lane, c + lane);
    }
}

void short_scores(const int32_t* a, const float* row_unit, size_t m, size_t k, const int32_t* b, const float* lane_unit,
                  size_t lanes, bool vnni, float* c) {
    const PairOperand keys{a, pairs(k), 1};
    vnni ? short_product<true, false>(keys, m, pairs(k), b, lanes, row_unit, lane_unit, c)
         : short_product<false, false>(keys, m, pairs(k), b, lanes, row_unit, lane_unit, c);
}

void short_values(const int32_t* v, const float* dim_unit, size_t m, size_t k, const int32_t* p, const float* lane_unit,
                  size_t lanes, bool vnni, float* o) {
    const PairOperand values{v, 1, k};
    vnni ? short_product<true, true>(values, k, pairs(m), p, lanes, dim_unit, lane_unit, o)
         : short_product<false, true>(values, k, pairs(m), p, lanes, dim_unit, lane_unit, o);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(round_lanes);
HWY_EXPORT(round_keys);
HWY_EXPORT(round_weights);
HWY_EXPORT(short_scores);
HWY_EXPORT(short_values);

/// Elements of two dimensions as pairs along either.
size_t most_pairs(size_t rows, size_t dim) {
    return std::max(rows * ((dim + 1) / 2), (rows + 1) / 2 * dim);
}

int32_t* take_pairs(Arena& arena, size_t n) {
    static_assert(sizeof(int32_t) == sizeof(float));
    return reinterpret_cast<int32_t*>(arena.take(n));
}

}  // namespace

bool ShortGemm::pays() {
    return has_avx512_vnni();
}

size_t ShortGemm::floats(size_t rows, size_t dim, size_t lanes) {
    return Arena::round_up((dim + 1) / 2 * lanes) + Arena::round_up(most_pairs(rows, dim)) +
           Arena::round_up(std::max(rows, dim)) + Arena::round_up((rows + 1) / 2 * lanes) + 2 * Arena::round_up(lanes);
}

ShortGemm::ShortGemm(Arena& arena, size_t rows, size_t dim, size_t lanes, bool vnni)
    : vnni_(vnni),
      queries_(take_pairs(arena, (dim + 1) / 2 * lanes)),
      query_unit_(arena.take(lanes)),
      rows_(take_pairs(arena, most_pairs(rows, dim))),
      row_unit_(arena.take(std::max(rows, dim))),
      weights_(take_pairs(arena, (rows + 1) / 2 * lanes)),
      weight_unit_(arena.take(lanes)) {}

void ShortGemm::set_queries(const float* q, size_t k, size_t lanes) {
    HWY_DYNAMIC_DISPATCH(round_lanes)(q, k, lanes, queries_, query_unit_);
}

void ShortGemm::scores(const float* a, size_t m, size_t k, size_t lanes, float* c) {
    HWY_DYNAMIC_DISPATCH(round_keys)(a, m, k, rows_, row_unit_);
    HWY_DYNAMIC_DISPATCH(short_scores)(rows_, row_unit_, m, k, queries_, query_unit_, lanes, vnni_, c);
}

void ShortGemm::values(const float* v, size_t m, size_t k, const float* p, size_t lanes, float* o) {
    HWY_DYNAMIC_DISPATCH(round_lanes)(v, m, k, rows_, row_unit_);
    HWY_DYNAMIC_DISPATCH(round_weights)(p, m, lanes, weights_, weight_unit_);
    HWY_DYNAMIC_DISPATCH(short_values)(rows_, row_unit_, m, k, weights_, weight_unit_, lanes, vnni_, o);
}

}  // namespace kvcodec
#endif
