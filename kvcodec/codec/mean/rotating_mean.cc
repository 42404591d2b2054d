#include "kvcodec/codec/mean/rotating_mean.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>
#include <numeric>
#include <string>

#include "kvcodec/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/mean/rotating_mean.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#ifndef KVCODEC_ROTATING_MEAN_ONCE
#define KVCODEC_ROTATING_MEAN_ONCE
namespace kvcodec {
namespace {

constexpr size_t kLaneTile = 4;
constexpr size_t kNodes = RopeTables::kNodes;
/// Floats in front of the prepared rows: the head, and how many lanes are not zero.
constexpr size_t kHeader = 4;
/// Shorter runs of consecutive positions are quicker cell by cell.
constexpr size_t kMinRun = 8;

/// A lane's A and B are scaled so that the amplitudes of its pairs sum up to this: none of their sums at any position
/// is more than 16 bits hold.
constexpr float kFullScale = 32000.0F;

/// Of one head's queries, see RotatingMean::prepare().
struct Prepared {
    Prepared(const float* data, size_t lanes, size_t stride)
        : n_active(static_cast<size_t>(data[1])),
          constant(data + kHeader),
          unit(constant + lanes),
          a(unit + lanes),
          b(a + lanes * stride) {}
    size_t n_active;
    const float* constant;  // [lanes]
    const float* unit;      // [lanes]: what 1 of A and B is in scores
    const float* a;         // [lanes, stride]
    const float* b;         // [lanes, stride]
};

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Wide = hn::CappedTag<float, 16>;
using Quad = hn::FixedTag<float, 4>;
using RotatingHead = RotatingMean::Head;

/// Cosines and sines of t, [2, stride].
void load_phases(const RopeTables& tables, int64_t t, float* HWY_RESTRICT phases) {
    if (t < 0 || t >= RopeTables::kMaxPosition) {
        tables.compute(t, phases);
        return;
    }
    const Wide d;
    const size_t stride = tables.stride();
    const float* HWY_RESTRICT low = tables.low(t);
    const float* HWY_RESTRICT mid = tables.mid(t);
    const float* HWY_RESTRICT top = tables.top(t);
    for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
        const auto mid_cos = hn::LoadU(d, mid + i);
        const auto mid_sin = hn::LoadU(d, mid + stride + i);
        const auto top_cos = hn::LoadU(d, top + i);
        const auto top_sin = hn::LoadU(d, top + stride + i);
        const auto start_cos = hn::NegMulAdd(mid_sin, top_sin, hn::Mul(mid_cos, top_cos));
        const auto start_sin = hn::MulAdd(mid_sin, top_cos, hn::Mul(mid_cos, top_sin));
        const auto low_cos = hn::LoadU(d, low + i);
        const auto low_sin = hn::LoadU(d, low + stride + i);
        hn::StoreU(hn::NegMulAdd(low_sin, start_sin, hn::Mul(low_cos, start_cos)), d, phases + i);
        hn::StoreU(hn::MulAdd(low_sin, start_cos, hn::Mul(low_cos, start_sin)), d, phases + stride + i);
    }
}

/// x[n] += sign * y[n].
void add_scaled(float sign, const float* HWY_RESTRICT y, size_t n, float* HWY_RESTRICT x) {
    const Wide d;
    const auto factor = hn::Set(d, sign);
    size_t i = 0;
    for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
        hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, x + i);
    }
    for (; i < n; ++i) {
        x[i] += sign * y[i];
    }
}

/// x_i += sign * R_{t_i} b.
void add_rotated(const RopeTables& tables, const RotatingHead& head, float sign, const int32_t* positions, size_t n,
                 float* x, size_t stride) {
    const Wide d;
    const size_t n_pairs = tables.rope().n_pairs();
    const size_t half = tables.stride();
    const bool adjacent = tables.rope().params().pairing == RopeParams::Pairing::kAdjacent;
    const float* HWY_RESTRICT b = head.rotated.data();
    HWY_ALIGN float phases[2 * RopeTables::kMaxPairs];
    HWY_ALIGN float first[2 * RopeTables::kMaxPairs];
    HWY_ALIGN float second[RopeTables::kMaxPairs];
    for (size_t row = 0; row < n; ++row, x += stride) {
        if (n_pairs > 0) {
            load_phases(tables, positions[row], phases);
        }
        for (size_t i = 0; i < half; i += hn::Lanes(d)) {
            const auto c = hn::Load(d, phases + i);
            const auto s = hn::Load(d, phases + half + i);
            const auto b0 = hn::LoadU(d, b + i);
            const auto b1 = hn::LoadU(d, b + half + i);
            const auto y0 = hn::NegMulAdd(b1, s, hn::Mul(b0, c));
            const auto y1 = hn::MulAdd(b1, c, hn::Mul(b0, s));
            if (adjacent) {
                hn::StoreInterleaved2(y0, y1, d, first + 2 * i);
            } else {
                hn::Store(y0, d, first + i);
                hn::Store(y1, d, second + i);
            }
        }
        if (adjacent) {
            add_scaled(sign, first, 2 * n_pairs, x);
        } else {
            add_scaled(sign, first, n_pairs, x);
            add_scaled(sign, second, n_pairs, x + n_pairs);
        }
        add_scaled(sign, head.constant.data(), head.constant.size(), x + 2 * n_pairs);
    }
}

/// x_i <- (x_i + mean) turned by the angles of t_i, times factor; backwards where sign is -1. Without mean (null) it is
/// zero.
template <bool kHasMean>
HWY_INLINE void turn_rows(const RopeTables& tables, float sign, float factor, const int32_t* positions, size_t n,
                          const float* HWY_RESTRICT mean, float* HWY_RESTRICT x, size_t stride) {
    const Wide d;
    const size_t n_pairs = tables.rope().n_pairs();
    const size_t half = tables.stride();
    const bool adjacent = tables.rope().params().pairing == RopeParams::Pairing::kAdjacent;
    HWY_ALIGN float start[2 * RopeTables::kMaxPairs];  // phases at the first position of a block, times factor
    HWY_ALIGN float phases[2 * RopeTables::kMaxPairs];
    const auto factors = hn::Set(d, factor);
    const auto signs = hn::Set(d, sign);
    int64_t block = -1;
    for (size_t row = 0; row < n; ++row, x += stride) {
        const int64_t t = positions[row];
        const bool is_computed = t < 0 || t >= RopeTables::kMaxPosition;
        const float* HWY_RESTRICT low = is_computed ? phases : tables.low(t);
        if (is_computed) {
            tables.compute(t, phases);
        }
        if (const int64_t wanted = is_computed ? -2 : t / RopeTables::kBlock; wanted != block) {
            block = wanted;
            load_phases(tables, is_computed ? 0 : t / RopeTables::kBlock * RopeTables::kBlock, start);
            for (size_t i = 0; i < 2 * half; i += hn::Lanes(d)) {
                hn::Store(hn::Mul(factors, hn::Load(d, start + i)), d, start + i);
            }
        }
        size_t i = 0;
        for (; i + hn::Lanes(d) <= n_pairs; i += hn::Lanes(d)) {
            const auto start_cos = hn::Load(d, start + i);
            const auto start_sin = hn::Load(d, start + half + i);
            const auto low_cos = hn::LoadU(d, low + i);
            const auto low_sin = hn::LoadU(d, low + half + i);
            const auto c = hn::NegMulAdd(low_sin, start_sin, hn::Mul(low_cos, start_cos));
            const auto s = hn::Mul(signs, hn::MulAdd(low_sin, start_cos, hn::Mul(low_cos, start_sin)));
            const size_t first = adjacent ? 2 * i : i;
            const size_t second = adjacent ? 2 * i + hn::Lanes(d) : n_pairs + i;
            auto x0 = hn::LoadU(d, x + first);
            auto x1 = hn::LoadU(d, x + second);
            if constexpr (kHasMean) {
                x0 = hn::Add(x0, hn::LoadU(d, mean + first));
                x1 = hn::Add(x1, hn::LoadU(d, mean + second));
            }
            if (adjacent) {
                const auto even = hn::ConcatEven(d, x1, x0);
                x1 = hn::ConcatOdd(d, x1, x0);
                x0 = even;
            }
            const auto y0 = hn::NegMulAdd(x1, s, hn::Mul(x0, c));
            const auto y1 = hn::MulAdd(x1, c, hn::Mul(x0, s));
            if (adjacent) {
                hn::StoreInterleaved2(y0, y1, d, x + first);
            } else {
                hn::StoreU(y0, d, x + first);
                hn::StoreU(y1, d, x + second);
            }
        }
        for (; i < n_pairs; ++i) {
            const size_t first = adjacent ? 2 * i : i;
            const size_t second = adjacent ? 2 * i + 1 : n_pairs + i;
            const float c = low[i] * start[i] - low[half + i] * start[half + i];
            const float s = sign * (low[half + i] * start[i] + low[i] * start[half + i]);
            const float x0 = x[first] + (kHasMean ? mean[first] : 0.0F);
            const float x1 = x[second] + (kHasMean ? mean[second] : 0.0F);
            x[first] = x0 * c - x1 * s;
            x[second] = x0 * s + x1 * c;
        }
        if constexpr (kHasMean) {
            add_scaled(1.0F, mean + 2 * n_pairs, stride - 2 * n_pairs, x + 2 * n_pairs);
        }
    }
}

void turn(const RopeTables& tables, float sign, float factor, const int32_t* positions, size_t n, const float* mean,
          float* x, size_t stride) {
    if (mean == nullptr) {
        turn_rows<false>(tables, sign, factor, positions, n, nullptr, x, stride);
    } else {
        turn_rows<true>(tables, sign, factor, positions, n, mean, x, stride);
    }
}

/// One cell: s[lanes] += A cos + B sin, summed over the pairs.
void score_cell(const Prepared& prepared, size_t stride, const float* HWY_RESTRICT phases, float* HWY_RESTRICT s) {
    const Wide d;
    for (size_t lane = 0; lane < prepared.n_active; ++lane) {
        auto even = hn::Zero(d);
        auto odd = hn::Zero(d);
        for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
            even = hn::MulAdd(hn::LoadU(d, prepared.a + lane * stride + i), hn::LoadU(d, phases + i), even);
            odd = hn::MulAdd(hn::LoadU(d, prepared.b + lane * stride + i), hn::LoadU(d, phases + stride + i), odd);
        }
        const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
        s[lane] += prepared.constant[lane] + prepared.unit[lane] * sum;
    }
}

using Words = hn::Repartition<int32_t, Wide>;
using Shorts = hn::Repartition<int16_t, Wide>;

/// What up to kLaneTile lanes have of the waves over a run of cells, two values of 16 bits each: A and B of pairs, then
/// the slow pairs' sum at nodes.
struct Factors {
    static constexpr size_t kRow = RopeTables::kMaxPairs + 16;  // whole vectors
    static_assert(RopeTables::kNodePairs <= 16);
    HWY_ALIGN int32_t of[kLaneTile][kRow];
};

/// Vectors of cells whose sums stay in registers.
constexpr size_t kCellVectors = HWY_MAX_BYTES >= 64 ? 4 : 2;

/// sum + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] for every i.
template <class D, class V16, class V32>
HWY_INLINE V32 add_products(D d, V16 a, V16 b, V32 sum) {
    V32 odd = hn::Zero(d);  // Arm spreads the products over both, and only these may be put in order
    const V32 even = hn::ReorderWidenMulAccumulate(d, a, b, hn::Zero(d), odd);
    return hn::Add(sum, hn::RearrangeToOddPlusEven(even, odd));
}

/// kLanes lanes from `lane` on of cells [first_cell, first_cell + kCellVectors * Lanes), n_cells of which count. s
/// points at the first one, whose rows are `lanes` apart.
template <size_t kLanes>
HWY_INLINE void score_tile(const RopeTables& tables, const RotatingHead& head, const Prepared& prepared, size_t lane,
                           const Factors& factors, size_t first_cell, size_t n_cells, float* HWY_RESTRICT s,
                           size_t lanes) {
    const Wide d;
    const Words words;
    const Shorts shorts;
    const Quad quad;
    const size_t width = hn::Lanes(d);
    hn::Vec<Words> sum[kLanes][kCellVectors];
    for (size_t k = 0; k < kLanes; ++k) {
        for (size_t v = 0; v < kCellVectors; ++v) {
            sum[k][v] = hn::Zero(words);
        }
    }
    for (const uint32_t i : head.waves) {
        const int16_t* HWY_RESTRICT wave = tables.wave(i) + 2 * first_cell;
        hn::Vec<Shorts> w[kCellVectors];
        for (size_t v = 0; v < kCellVectors; ++v) {
            w[v] = hn::LoadU(shorts, wave + v * 2 * width);
        }
        for (size_t k = 0; k < kLanes; ++k) {
            const auto f = hn::BitCast(shorts, hn::Set(words, factors.of[k][i]));
            for (size_t v = 0; v < kCellVectors; ++v) {
                sum[k][v] = add_products(words, w[v], f, sum[k][v]);
            }
        }
    }
    hn::Vec<Wide> scores[kLaneTile][kCellVectors];
    for (size_t k = 0; k < kLaneTile; ++k) {
        for (size_t v = 0; v < kCellVectors; ++v) {
            scores[k][v] = hn::Zero(d);
            if (k < kLanes) {
                const auto unit = hn::Set(d, prepared.unit[lane + k] / RopeTables::kWaveScale);
                scores[k][v] = hn::MulAdd(unit, hn::ConvertTo(d, sum[k][v]), hn::Set(d, prepared.constant[lane + k]));
            }
        }
    }
    HWY_ALIGN float cells[kCellVectors * kLaneTile * hn::MaxLanes(d)];
    for (size_t v = 0; v < kCellVectors; ++v) {
        hn::StoreInterleaved4(scores[0][v], scores[1][v], scores[2][v], scores[3][v], d, cells + v * kLaneTile * width);
    }
    size_t cell = 0;
    if (lanes == kLaneTile && n_cells >= kCellVectors * width) {
        for (; cell < kCellVectors * width; cell += width / kLaneTile) {
            float* HWY_RESTRICT out = s + cell * kLaneTile;
            hn::StoreU(hn::Add(hn::LoadU(d, out), hn::Load(d, cells + cell * kLaneTile)), d, out);
        }
    }
    for (; cell < std::min(n_cells, kCellVectors * width); ++cell) {
        float* HWY_RESTRICT out = s + cell * lanes;
        hn::StoreU(hn::Add(hn::LoadU(quad, out), hn::Load(quad, cells + cell * kLaneTile)), quad, out);
    }
}

/// Lanes [lane, lane + kLanes) of n cells at consecutive positions: A and B are turned to the first one, then the waves
/// over a block are constants. In 16 bits: of the sum of the pairs' amplitudes, a score is off by about 1e-5 times the
/// root of their number.
template <size_t kLanes>
void score_lanes(const RopeTables& tables, const RotatingHead& head, const Prepared& prepared, size_t lane,
                 size_t lanes, const float* HWY_RESTRICT phases, size_t n, float* HWY_RESTRICT s) {
    const Wide d;
    const Words words;
    const hn::CappedTag<int16_t, 2 * kNodes> node_shorts;
    const hn::Repartition<int32_t, decltype(node_shorts)> node_words;
    const hn::Rebind<int16_t, decltype(node_words)> node_results;
    const size_t stride = tables.stride();
    const auto rounding = hn::Set(d, 12582912.0F);  // 1.5 * 2^23: the last 16 bits of a sum are the nearest integer
    Factors factors;
    for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
        const auto c = hn::LoadU(d, phases + i);
        const auto sine = hn::LoadU(d, phases + stride + i);
        for (size_t k = 0; k < kLanes; ++k) {
            const auto a = hn::LoadU(d, prepared.a + (lane + k) * stride + i);
            const auto b = hn::LoadU(d, prepared.b + (lane + k) * stride + i);
            const auto cosines = hn::Add(hn::MulAdd(a, c, hn::Mul(b, sine)), rounding);
            const auto sines = hn::Add(hn::NegMulAdd(a, sine, hn::Mul(b, c)), rounding);
            const auto low = hn::And(hn::BitCast(words, cosines), hn::Set(words, 0xFFFF));
            hn::Store(hn::Or(low, hn::ShiftLeft<16>(hn::BitCast(words, sines))), words, factors.of[k] + i);
        }
    }
    for (size_t node = 0; !head.slow.empty() && node < kNodes; node += hn::Lanes(node_words)) {
        hn::Vec<decltype(node_words)> sum[kLanes];
        for (size_t k = 0; k < kLanes; ++k) {
            sum[k] = hn::Set(node_words, RopeTables::kWaveScale / 2);  // the shift below rounds
        }
        for (const uint32_t pair : head.slow) {
            const auto waves = hn::LoadU(node_shorts, tables.node_wave(pair) + 2 * node);
            for (size_t k = 0; k < kLanes; ++k) {
                const auto f = hn::BitCast(node_shorts, hn::Set(node_words, factors.of[k][pair]));
                sum[k] = add_products(node_words, waves, f, sum[k]);
            }
        }
        for (size_t k = 0; k < kLanes; ++k) {
            int16_t values[kNodes];
            hn::StoreU(hn::DemoteTo(node_results, hn::ShiftRight<RopeTables::kWaveBits>(sum[k])), node_results,
                       values + node);
            std::memcpy(factors.of[k] + stride + node / 2, values + node, hn::Lanes(node_words) * sizeof(int16_t));
        }
    }
    const size_t step = kCellVectors * hn::Lanes(d);
    for (size_t cell = 0; cell < n; cell += step) {
        score_tile<kLanes>(tables, head, prepared, lane, factors, cell, n - cell, s + cell * lanes + lane, lanes);
    }
}

void score_run(const RopeTables& tables, const RotatingHead& head, const Prepared& prepared, size_t lanes,
               const float* phases, size_t n, float* s) {
    for (size_t lane = 0; lane < prepared.n_active; lane += kLaneTile) {
        switch (std::min(kLaneTile, prepared.n_active - lane)) {
            case 1:
                score_lanes<1>(tables, head, prepared, lane, lanes, phases, n, s);
                break;
            case 2:
                score_lanes<2>(tables, head, prepared, lane, lanes, phases, n, s);
                break;
            case 3:
                score_lanes<3>(tables, head, prepared, lane, lanes, phases, n, s);
                break;
            default:
                score_lanes<4>(tables, head, prepared, lane, lanes, phases, n, s);
        }
    }
}

/// How many of n > 0 positions from the first on are consecutive.
size_t run_length(const int32_t* positions, size_t n) {
    const hn::CappedTag<int32_t, 16> d;
    const auto follow = [&](size_t i) HWY_ATTR {  // whether positions from i on all follow the ones before them
        const auto step = hn::Sub(hn::LoadU(d, positions + i), hn::LoadU(d, positions + i - 1));
        return hn::AllTrue(d, hn::Eq(step, hn::Set(d, 1)));
    };
    size_t i = 1;
    while (i + hn::Lanes(d) <= n && follow(i)) {
        i += hn::Lanes(d);
    }
    if (i > 1 && i < n && i + hn::Lanes(d) > n && follow(n - hn::Lanes(d))) {
        return n;
    }
    while (i < n && int64_t{positions[i]} == int64_t{positions[i - 1]} + 1) {
        ++i;
    }
    return i;
}

void score_cells(const RopeTables& tables, const RotatingHead& head, const Prepared& prepared, size_t lanes,
                 const int32_t* positions, size_t n, float* s) {
    HWY_ALIGN float phases[2 * RopeTables::kMaxPairs];
    for (size_t i = 0, run = 0; i < n; i += run) {
        run = run_length(positions + i, n - i);
        if (run >= kMinRun) {
            load_phases(tables, positions[i], phases);
            score_run(tables, head, prepared, lanes, phases, run, s + i * lanes);
            continue;
        }
        for (size_t cell = i; cell < i + run; ++cell) {
            load_phases(tables, positions[cell], phases);
            score_cell(prepared, tables.stride(), phases, s + cell * lanes);
        }
    }
}

}  // namespace
}  // namespace kvcodec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(add_rotated);
HWY_EXPORT(score_cells);
HWY_EXPORT(turn);

/// Positions from the middle of a block to its ends.
constexpr double kHalfBlock = (RopeTables::kBlock - 1) / 2.0;

/// Pairs to keep, ascending: those of least energy are left out while they sum up to at most `budget`.
std::vector<uint32_t> kept_pairs(const std::vector<double>& energy, double budget) {
    std::vector<uint32_t> order(energy.size());
    std::iota(order.begin(), order.end(), 0U);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return energy[a] < energy[b]; });
    size_t dropped = 0;
    for (double sum = 0.0; dropped < order.size(); ++dropped) {
        sum += energy[order[dropped]];
        if (sum > budget) {
            break;
        }
    }
    order.erase(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(dropped));
    std::sort(order.begin(), order.end());
    return order;
}

double squared(double v) {
    return v * v;
}

RotatingMean::Head make_head(const RopeTables& tables, const float* b, size_t dim, double dropped_energy) {
    const Rope& rope = tables.rope();
    std::vector<double> energy(rope.n_pairs());
    double total = 0.0;
    for (size_t i = 0; i < energy.size(); ++i) {
        energy[i] = squared(b[rope.first(i)]) + squared(b[rope.second(i)]);
        total += energy[i];
    }
    RotatingMean::Head head;
    head.constant.assign(b + 2 * rope.n_pairs(), b + dim);
    for (const float v : head.constant) {
        total += squared(v);
    }
    head.rotated.assign(2 * tables.stride(), 0.0F);
    for (const uint32_t pair : kept_pairs(energy, dropped_energy * total)) {
        (tables.is_slow(pair) ? head.slow : head.waves).push_back(pair);
        head.rotated[pair] = b[rope.first(pair)] * rope.magnitude();
        head.rotated[tables.stride() + pair] = b[rope.second(pair)] * rope.magnitude();
    }
    if (head.slow.size() <= RopeTables::kNodePairs) {  // no more waves than the interpolation has
        head.waves.insert(head.waves.end(), head.slow.begin(), head.slow.end());
        head.slow.clear();
    }
    head.n_pairs = head.waves.size() + head.slow.size();
    for (uint32_t i = 0; !head.slow.empty() && i < RopeTables::kNodePairs; ++i) {
        head.waves.push_back(static_cast<uint32_t>(tables.stride()) + i);
    }
    return head;
}

}  // namespace

RopeTables::RopeTables(const Rope& rope) : rope_(rope), stride_((rope.n_pairs() + 15) / 16 * 16) {
    if (rope_.n_pairs() > kMaxPairs) {
        throw Error("RoPE over " + std::to_string(2 * rope_.n_pairs()) + " dimensions is more than the supported " +
                    std::to_string(2 * kMaxPairs));
    }
    constexpr size_t kTop = kMaxPosition / 4096;
    phases_.resize((64 + 64 + kTop) * 2 * stride_);
    float* next = phases_.data();
    const auto append_rows = [&](size_t n, int64_t step) {
        for (size_t i = 0; i < n; ++i, next += 2 * stride_) {
            compute(static_cast<int64_t>(i) * step, next);
        }
    };
    append_rows(64, 1);
    append_rows(64, 64);
    append_rows(kTop, 4096);
    const auto rounded = [](double value) { return static_cast<int16_t>(std::lround(value * kWaveScale)); };
    std::array<double, kNodes> node;
    for (size_t k = 0; k < kNodes; ++k) {
        const double angle = std::numbers::pi * (static_cast<double>(k) + 0.5) / kNodes;
        node[k] = kHalfBlock * (1.0 + std::cos(angle));
    }
    waves_.resize((stride_ + kNodePairs) * 2 * kBlock);
    for (size_t pair = 0; pair < rope_.n_pairs(); ++pair) {
        const double omega = rope_.omega(pair);
        for (size_t j = 0; j < kBlock; ++j) {
            waves_[pair * 2 * kBlock + 2 * j] = rounded(std::cos(omega * static_cast<double>(j)));
            waves_[pair * 2 * kBlock + 2 * j + 1] = rounded(std::sin(omega * static_cast<double>(j)));
        }
        for (const double t : node) {
            node_waves_.push_back(rounded(std::cos(omega * t)));
            node_waves_.push_back(rounded(std::sin(omega * t)));
        }
    }
    for (size_t k = 0; k < kNodes; ++k) {
        for (size_t j = 0; j < kBlock; ++j) {
            double value = 1.0;
            for (size_t other = 0; other < kNodes; ++other) {
                value *= other == k ? 1.0 : (static_cast<double>(j) - node[other]) / (node[k] - node[other]);
            }
            waves_[(stride_ + k / 2) * 2 * kBlock + 2 * j + k % 2] = rounded(value);
        }
    }
}

bool RopeTables::is_slow(size_t pair) const {
    // The error is at most 2 (angle / 2)^kNodes / kNodes! of the amplitude.
    constexpr double kMostAngle = 2.0;
    return std::abs(rope_.omega(pair)) * kHalfBlock <= kMostAngle;
}

void RopeTables::compute(int64_t t, float* phases) const {
    std::fill_n(phases, 2 * stride_, 0.0F);
    for (size_t pair = 0; pair < rope_.n_pairs(); ++pair) {
        const double angle = rope_.omega(pair) * static_cast<double>(t);
        phases[pair] = static_cast<float>(std::cos(angle));
        phases[stride_ + pair] = static_cast<float>(std::sin(angle));
    }
}

void RopeTables::rotate(const int32_t* positions, size_t n, float* x, size_t stride, const float* mean) const {
    HWY_DYNAMIC_DISPATCH(turn)(*this, 1.0F, rope_.magnitude(), positions, n, mean, x, stride);
}

void RopeTables::unrotate(const int32_t* positions, size_t n, float* x, size_t stride) const {
    HWY_DYNAMIC_DISPATCH(turn)(*this, -1.0F, 1.0F / rope_.magnitude(), positions, n, nullptr, x, stride);
}

RotatingMean::RotatingMean(std::shared_ptr<const RopeTables> tables, const std::vector<float>& mean, size_t n_head_kv,
                           double dropped_energy)
    : tables_(std::move(tables)) {
    const size_t dim = n_head_kv == 0 ? 0 : mean.size() / n_head_kv;
    if (dim == 0 || mean.size() != n_head_kv * dim || dim < 2 * tables_->rope().n_pairs()) {
        throw Error("a mean of " + std::to_string(mean.size()) + " values does not fit " + std::to_string(n_head_kv) +
                    " heads with RoPE over " + std::to_string(2 * tables_->rope().n_pairs()) + " dimensions");
    }
    for (size_t i = 0; i < n_head_kv; ++i) {
        heads_.push_back(make_head(*tables_, mean.data() + i * dim, dim, dropped_energy));
    }
}

size_t RotatingMean::bytes() const {
    size_t bytes = 0;
    for (const Head& head : heads_) {
        bytes += (head.waves.size() + head.slow.size() + head.rotated.size() + head.constant.size()) * sizeof(float);
    }
    return bytes;
}

void RotatingMean::subtract(size_t head, const int32_t* positions, size_t n, float* x, size_t stride) const {
    HWY_DYNAMIC_DISPATCH(add_rotated)(*tables_, heads_[head], -1.0F, positions, n, x, stride);
}

void RotatingMean::add(size_t head, const int32_t* positions, size_t n, float* x, size_t stride) const {
    HWY_DYNAMIC_DISPATCH(add_rotated)(*tables_, heads_[head], 1.0F, positions, n, x, stride);
}

size_t RotatingMean::prepared_floats(size_t lanes) const {
    return kHeader + lanes * (2 + 2 * tables_->stride());
}

// prepared: kHeader floats, a row [lanes] of q . b over the elements without rotation, one of units, then A and B
// [lanes, stride]. For a pair, q . R_t b = A cos(t omega) + B sin(t omega) with A = q0 b0 + q1 b1, B = q1 b0 - q0 b1.
void RotatingMean::prepare(size_t head_index, const float* q, size_t lanes, float* prepared) const {
    const Rope& rope = tables_->rope();
    const Head& head = heads_[head_index];
    const size_t stride = tables_->stride();
    const size_t dim = 2 * rope.n_pairs() + head.constant.size();
    std::fill_n(prepared, prepared_floats(lanes), 0.0F);
    prepared[0] = static_cast<float>(head_index);
    float* constant = prepared + kHeader;
    float* unit = constant + lanes;
    float* a = unit + lanes;
    float* b = a + lanes * stride;
    for (size_t lane = 0; lane < lanes; ++lane, q += dim, a += stride, b += stride) {
        if (std::any_of(q, q + dim, [](float element) { return element != 0.0F; })) {
            prepared[1] = static_cast<float>(lane + 1);
        }
        constant[lane] = std::inner_product(head.constant.begin(), head.constant.end(), q + 2 * rope.n_pairs(), 0.0F);
        float amplitudes = 0.0F;
        for (size_t pair = 0; pair < rope.n_pairs(); ++pair) {
            const float b0 = head.rotated[pair];
            const float b1 = head.rotated[stride + pair];
            const float q0 = q[rope.first(pair)];
            const float q1 = q[rope.second(pair)];
            a[pair] = q0 * b0 + q1 * b1;
            b[pair] = q1 * b0 - q0 * b1;
            amplitudes += std::sqrt(a[pair] * a[pair] + b[pair] * b[pair]);
        }
        unit[lane] = amplitudes / kFullScale;
        const float scale = amplitudes > 1e-30F ? kFullScale / amplitudes : 0.0F;  // finite
        std::for_each_n(a, stride, [scale](float& value) { value *= scale; });
        std::for_each_n(b, stride, [scale](float& value) { value *= scale; });
    }
}

void RotatingMean::score(const float* prepared, size_t lanes, const int32_t* positions, size_t n, float* s) const {
    const Head& head = heads_[static_cast<size_t>(prepared[0])];
    if (!rotates()) {
        for (size_t i = 0; i < n * lanes; ++i) {
            s[i] += prepared[kHeader + i % lanes];
        }
        return;
    }
    HWY_DYNAMIC_DISPATCH(score_cells)
    (*tables_, head, Prepared(prepared, lanes, tables_->stride()), lanes, positions, n, s);
}

}  // namespace kvcodec
#endif
