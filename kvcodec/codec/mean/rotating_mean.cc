#include "kvcodec/codec/mean/rotating_mean.h"

#include <algorithm>
#include <array>
#include <cmath>
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

/// Of one head's queries, see RotatingMean::prepare().
struct Prepared {
    Prepared(const float* data, size_t lanes, size_t stride)
        : n_active(static_cast<size_t>(data[1])),
          constant(data + kHeader),
          a(constant + lanes),
          b(a + lanes * stride) {}
    size_t n_active;
    const float* constant;  // [lanes]
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
        s[lane] += prepared.constant[lane] + hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
    }
}

/// What up to kLaneTile lanes have of the waves over a run of cells.
struct Factors {
    const float* constant;                                 // [kLaneTile]
    float a[kLaneTile][RopeTables::kMaxPairs];             // of cosines
    float b[kLaneTile][RopeTables::kMaxPairs];             // of sines
    HWY_ALIGN float nodes[kLaneTile][RopeTables::kNodes];  // the slow pairs' sum
};

/// Vectors of cells whose sums stay in registers.
constexpr size_t kCellVectors = HWY_MAX_BYTES >= 64 ? 4 : 2;

/// kLanes lanes of cells [first_cell, first_cell + kCellVectors * Lanes), n_cells of which count. s points at the first
/// one, whose rows are `lanes` apart.
template <size_t kLanes>
HWY_INLINE void score_tile(const RopeTables& tables, const RotatingHead& head, const Factors& factors,
                           size_t first_cell, size_t n_cells, float* HWY_RESTRICT s, size_t lanes) {
    const Wide d;
    const Quad quad;
    const size_t width = hn::Lanes(d);
    hn::Vec<Wide> sum[kLaneTile][kCellVectors];
    for (size_t lane = 0; lane < kLaneTile; ++lane) {
        for (size_t v = 0; v < kCellVectors; ++v) {
            sum[lane][v] = lane < kLanes ? hn::Set(d, factors.constant[lane]) : hn::Zero(d);
        }
    }
    const auto add_wave = [&](const float* HWY_RESTRICT wave, const float* HWY_RESTRICT factor, size_t stride)
                              HWY_ATTR {
                                  hn::Vec<Wide> w[kCellVectors];
                                  for (size_t v = 0; v < kCellVectors; ++v) {
                                      w[v] = hn::LoadU(d, wave + v * width);
                                  }
                                  for (size_t lane = 0; lane < kLanes; ++lane) {
                                      const auto f = hn::Set(d, factor[lane * stride]);
                                      for (size_t v = 0; v < kCellVectors; ++v) {
                                          sum[lane][v] = hn::MulAdd(f, w[v], sum[lane][v]);
                                      }
                                  }
                              };
    for (const uint32_t pair : head.fast) {
        const float* HWY_RESTRICT wave = tables.wave(pair) + first_cell;
        add_wave(wave, &factors.a[0][pair], RopeTables::kMaxPairs);
        add_wave(wave + RopeTables::kBlock, &factors.b[0][pair], RopeTables::kMaxPairs);
    }
    const float* HWY_RESTRICT interpolation = tables.interpolation() + first_cell;
    for (size_t node = 0; !head.slow.empty() && node < kNodes; ++node) {
        add_wave(interpolation + node * RopeTables::kBlock, &factors.nodes[0][node], kNodes);
    }
    HWY_ALIGN float cells[kCellVectors * kLaneTile * hn::MaxLanes(d)];
    for (size_t v = 0; v < kCellVectors; ++v) {
        hn::StoreInterleaved4(sum[0][v], sum[1][v], sum[2][v], sum[3][v], d, cells + v * kLaneTile * width);
    }
    for (size_t cell = 0; cell < std::min(n_cells, kCellVectors * width); ++cell) {
        float* HWY_RESTRICT out = s + cell * lanes;
        hn::StoreU(hn::Add(hn::LoadU(quad, out), hn::Load(quad, cells + cell * kLaneTile)), quad, out);
    }
}

/// Lanes [lane, lane + kLanes) of n cells at consecutive positions: A and B are turned to the first one, then the waves
/// over a block are constants.
template <size_t kLanes>
void score_lanes(const RopeTables& tables, const RotatingHead& head, const Prepared& prepared, size_t lane,
                 size_t lanes, const float* HWY_RESTRICT phases, size_t n, float* HWY_RESTRICT s) {
    const Wide d;
    const hn::CappedTag<float, kNodes> nodes;
    const size_t stride = tables.stride();
    Factors factors;
    factors.constant = prepared.constant + lane;
    for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
        const auto c = hn::LoadU(d, phases + i);
        const auto sine = hn::LoadU(d, phases + stride + i);
        for (size_t k = 0; k < kLanes; ++k) {
            const auto a = hn::LoadU(d, prepared.a + (lane + k) * stride + i);
            const auto b = hn::LoadU(d, prepared.b + (lane + k) * stride + i);
            hn::StoreU(hn::MulAdd(a, c, hn::Mul(b, sine)), d, factors.a[k] + i);
            hn::StoreU(hn::NegMulAdd(a, sine, hn::Mul(b, c)), d, factors.b[k] + i);
        }
    }
    for (size_t node = 0; !head.slow.empty() && node < kNodes; node += hn::Lanes(nodes)) {
        hn::Vec<decltype(nodes)> even[kLanes], odd[kLanes];
        for (size_t k = 0; k < kLanes; ++k) {
            even[k] = odd[k] = hn::Zero(nodes);
        }
        for (const uint32_t pair : head.slow) {
            const auto cosines = hn::LoadU(nodes, tables.node_wave(pair) + node);
            const auto sines = hn::LoadU(nodes, tables.node_wave(pair) + kNodes + node);
            for (size_t k = 0; k < kLanes; ++k) {
                even[k] = hn::MulAdd(hn::Set(nodes, factors.a[k][pair]), cosines, even[k]);
                odd[k] = hn::MulAdd(hn::Set(nodes, factors.b[k][pair]), sines, odd[k]);
            }
        }
        for (size_t k = 0; k < kLanes; ++k) {
            hn::StoreU(hn::Add(even[k], odd[k]), nodes, factors.nodes[k] + node);
        }
    }
    const size_t step = kCellVectors * hn::Lanes(d);
    for (size_t cell = 0; cell < n; cell += step) {
        score_tile<kLanes>(tables, head, factors, cell, n - cell, s + cell * lanes + lane, lanes);
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
    size_t i = 1;
    for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
        const auto step = hn::Sub(hn::LoadU(d, positions + i), hn::LoadU(d, positions + i - 1));
        if (!hn::AllTrue(d, hn::Eq(step, hn::Set(d, 1)))) {
            break;
        }
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
        (tables.is_slow(pair) ? head.slow : head.fast).push_back(pair);
        head.rotated[pair] = b[rope.first(pair)] * rope.magnitude();
        head.rotated[tables.stride() + pair] = b[rope.second(pair)] * rope.magnitude();
    }
    if (2 * head.slow.size() <= kNodes) {  // two waves each are no more than the interpolation
        head.fast.insert(head.fast.end(), head.slow.begin(), head.slow.end());
        head.slow.clear();
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
    waves_.resize(rope_.n_pairs() * 2 * kBlock);
    for (size_t pair = 0; pair < rope_.n_pairs(); ++pair) {
        for (size_t j = 0; j < kBlock; ++j) {
            const double angle = rope_.omega(pair) * static_cast<double>(j);
            waves_[pair * 2 * kBlock + j] = static_cast<float>(std::cos(angle));
            waves_[pair * 2 * kBlock + kBlock + j] = static_cast<float>(std::sin(angle));
        }
    }
    std::array<double, kNodes> node;
    for (size_t k = 0; k < kNodes; ++k) {
        const double angle = std::numbers::pi * (static_cast<double>(k) + 0.5) / kNodes;
        node[k] = kHalfBlock * (1.0 + std::cos(angle));
    }
    node_waves_.resize(rope_.n_pairs() * 2 * kNodes);
    for (size_t pair = 0; pair < rope_.n_pairs(); ++pair) {
        for (size_t k = 0; k < kNodes; ++k) {
            node_waves_[pair * 2 * kNodes + k] = static_cast<float>(std::cos(rope_.omega(pair) * node[k]));
            node_waves_[pair * 2 * kNodes + kNodes + k] = static_cast<float>(std::sin(rope_.omega(pair) * node[k]));
        }
    }
    for (size_t k = 0; k < kNodes; ++k) {
        for (size_t j = 0; j < kBlock; ++j) {
            double value = 1.0;
            for (size_t other = 0; other < kNodes; ++other) {
                value *= other == k ? 1.0 : (static_cast<double>(j) - node[other]) / (node[k] - node[other]);
            }
            interpolation_.push_back(static_cast<float>(value));
        }
    }
}

bool RopeTables::is_slow(size_t pair) const {
    // The error is at most 2 (angle / 2)^kNodes / kNodes! of the amplitude.
    constexpr double kMostAngle = 1.0;
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
        bytes += (head.fast.size() + head.slow.size() + head.rotated.size() + head.constant.size()) * sizeof(float);
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
    return kHeader + lanes * (1 + 2 * tables_->stride());
}

// prepared: kHeader floats, a row [lanes] of q . b over the elements without rotation, then A and B [lanes, stride].
// For a pair, q . R_t b = A cos(t omega) + B sin(t omega) with A = q0 b0 + q1 b1 and B = q1 b0 - q0 b1.
void RotatingMean::prepare(size_t head_index, const float* q, size_t lanes, float* prepared) const {
    const Rope& rope = tables_->rope();
    const Head& head = heads_[head_index];
    const size_t stride = tables_->stride();
    const size_t dim = 2 * rope.n_pairs() + head.constant.size();
    std::fill_n(prepared, prepared_floats(lanes), 0.0F);
    prepared[0] = static_cast<float>(head_index);
    float* constant = prepared + kHeader;
    float* a = constant + lanes;
    float* b = a + lanes * stride;
    for (size_t lane = 0; lane < lanes; ++lane, q += dim, a += stride, b += stride) {
        if (std::any_of(q, q + dim, [](float element) { return element != 0.0F; })) {
            prepared[1] = static_cast<float>(lane + 1);
        }
        constant[lane] = std::inner_product(head.constant.begin(), head.constant.end(), q + 2 * rope.n_pairs(), 0.0F);
        for (size_t pair = 0; pair < rope.n_pairs(); ++pair) {
            const float b0 = head.rotated[pair];
            const float b1 = head.rotated[stride + pair];
            const float q0 = q[rope.first(pair)];
            const float q1 = q[rope.second(pair)];
            a[pair] = q0 * b0 + q1 * b1;
            b[pair] = q1 * b0 - q0 * b1;
        }
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
