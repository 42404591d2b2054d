#include "kvcodec/codec/trellis/trellis.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "kvcodec/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/trellis/trellis.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file once for every target.
#include <hwy/highway.h>

#ifndef KVCODEC_TRELLIS_ONCE
#define KVCODEC_TRELLIS_ONCE
namespace kvcodec {
namespace {

constexpr size_t kStates = Trellis::kStates;
constexpr size_t kScales = TrellisEncoder::kScales;
/// Trials run side by side: so many rows with so many scales each.
constexpr size_t kRows = 4;
constexpr size_t kTrials = kRows * kScales;

/// Positive half of the levels, found by Lloyd's iterations over coded Gaussian vectors of 64 elements; from 5 bits on
/// the quantiser that is best for many levels is as good (quantiles of a Gaussian of three times the variance; Panter
/// and Dite 1951).
std::vector<double> positive_levels(unsigned bits) {
    switch (bits) {
        case 1:
            return {0.3725, 1.1855};
        case 2:
            return {0.1963, 0.6061, 1.0822, 1.8665};
        case 3:
            return {0.1069, 0.3091, 0.5345, 0.7657, 1.0348, 1.3518, 1.7941, 2.4827};
        case 4:
            return {0.0614, 0.1758, 0.2984, 0.4145, 0.5432, 0.6667, 0.8022, 0.9361,
                    1.0848, 1.2400, 1.4156, 1.6142, 1.8509, 2.1465, 2.5343, 3.1274};
        default:
            break;
    }
    constexpr double kOutermost = 0.75;
    const size_t n = size_t{1} << bits;
    std::vector<double> levels(n);
    for (size_t i = 0; i < n; ++i) {
        const double share =
            (static_cast<double>(n + i) + kOutermost) / (static_cast<double>(2 * n - 1) + 2 * kOutermost);
        double low = 0.0, high = 16.0;
        for (int step = 0; step < 60; ++step) {
            const double middle = (low + high) / 2;
            (std::erfc(-middle / std::numbers::sqrt3 / std::numbers::sqrt2) / 2 < share ? low : high) = middle;
        }
        levels[i] = low;
    }
    return levels;
}

/// Thresholds between the levels of a subset, and the levels themselves, in deviations.
struct Alphabet {
    alignas(16) std::array<float, 128> level{};                    // ascending: subset lowest
    alignas(16) std::array<std::array<float, 4>, 31> threshold{};  // [rest, subset]
};

/// By bits.
const std::array<Alphabet, Trellis::kMaxBits + 1>& alphabets() {
    static const auto instance = [] {
        std::array<Alphabet, Trellis::kMaxBits + 1> all;
        for (unsigned b = 1; b <= Trellis::kMaxBits; ++b) {
            const Trellis::Levels& levels = Trellis::levels(b);
            const size_t n = size_t{2} << b;
            for (size_t i = 0; i < n; ++i) {
                all[b].level[i] = static_cast<float>(levels.level[i]) * levels.unit;
            }
            for (size_t i = 0; i + 4 < n; ++i) {
                all[b].threshold[i / 4][i % 4] = (all[b].level[i] + all[b].level[i + 4]) / 2;
            }
        }
        return all;
    }();
    return instance;
}

/// Which subset the step into state `to` takes; the one out of the other predecessor takes the opposite, ^ 2.
constexpr size_t subset_into(size_t to) {
    return (to >> 2 & 1) | ((to ^ to >> 1) & 1) << 1;
}

/// What the trials share, and their results.
struct TrellisJob {
    const Alphabet* alphabets;  // by bits
    const uint8_t* bits;
    const float* weight;
    size_t n;
    const float* y;               // [n, kRows], or [n] of one row
    const float* inverse_scales;  // [kTrials]
    float* cost;                  // [kTrials], in squared deviations
    int32_t* index;               // [n, kTrials]
};

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/// Of all trials, element t in deviations: trials are scale by scale, row by row.
template <size_t kRowsAtOnce, class D>
HWY_INLINE hn::Vec<D> load_element(D d, const TrellisJob& job, size_t t, hn::Vec<D> inverse_scale) {
    if constexpr (kRowsAtOnce == 1) {
        return hn::Mul(hn::Set(d, job.y[t]), inverse_scale);
    } else {
        return hn::Mul(hn::LoadDup128(d, job.y + t * kRows), inverse_scale);
    }
}

/// Squared distance from x to the nearest level of each subset.
template <class D>
HWY_INLINE void subset_distances(D d, const float* HWY_RESTRICT levels, size_t n_levels, hn::Vec<D> x,
                                 hn::Vec<D> weight, hn::Vec<D> (&distance)[4]) {
    for (size_t subset = 0; subset < 4; ++subset) {
        distance[subset] = hn::Abs(hn::Sub(x, hn::Set(d, levels[subset])));
    }
    for (size_t i = 4; i < n_levels; i += 4) {
        for (size_t subset = 0; subset < 4; ++subset) {
            distance[subset] = hn::Min(distance[subset], hn::Abs(hn::Sub(x, hn::Set(d, levels[i + subset]))));
        }
    }
    for (size_t subset = 0; subset < 4; ++subset) {
        distance[subset] = hn::Mul(weight, hn::Mul(distance[subset], distance[subset]));
    }
}

/// Least costs to be in each state one element on; returns, bit by state, which of two predecessors is the better one.
template <class D, class DI = hn::Rebind<int32_t, D>>
HWY_INLINE hn::Vec<DI> step(D /*d*/, const hn::Vec<D> (&distance)[4], hn::Vec<D> (&cost)[kStates]) {
    const DI integers;
    auto decisions = hn::Zero(integers);
    hn::Vec<D> next[kStates];
    for (size_t to = 0; to < kStates; ++to) {
        const auto first = hn::Add(cost[to >> 1], distance[subset_into(to)]);
        const auto second = hn::Add(cost[to >> 1 | 4], distance[subset_into(to) ^ 2]);
        const auto is_second = hn::RebindMask(integers, hn::Lt(second, first));
        decisions = hn::Or(decisions, hn::IfThenElseZero(is_second, hn::Set(integers, 1 << to)));
        next[to] = hn::Min(first, second);
    }
    for (size_t state = 0; state < kStates; ++state) {
        cost[state] = next[state];
    }
    return decisions;
}

/// Trials [first, first + Lanes(d)).
template <size_t kRowsAtOnce, class D>
HWY_INLINE void run_trials(D d, const TrellisJob& job, size_t first) {
    const hn::Rebind<int32_t, D> integers;
    using Integers = hn::Vec<decltype(integers)>;
    const auto inverse_scale = hn::LoadU(d, job.inverse_scales + first);
    int32_t* HWY_RESTRICT column = job.index + first;
    hn::Vec<D> cost[kStates];
    cost[0] = hn::Zero(d);
    for (size_t state = 1; state < kStates; ++state) {
        cost[state] = hn::Set(d, 1e37F);
    }
    for (size_t t = 0; t < job.n; ++t) {
        const unsigned bits = job.bits[t];
        hn::Vec<D> distance[4];
        subset_distances(d, job.alphabets[bits].level.data(), size_t{2} << bits,
                         load_element<kRowsAtOnce>(d, job, t, inverse_scale), hn::Set(d, job.weight[t]), distance);
        hn::StoreU(step(d, distance, cost), integers, column + t * kTrials);
    }
    Integers state = hn::Zero(integers);
    for (size_t other = 1; other < kStates; ++other) {
        const auto better = hn::Lt(cost[other], cost[0]);
        state = hn::IfThenElse(hn::RebindMask(integers, better), hn::Set(integers, static_cast<int32_t>(other)), state);
        cost[0] = hn::Min(cost[0], cost[other]);
    }
    hn::StoreU(cost[0], d, job.cost + first);
    // Backwards along the best path: decisions become indices.
    const auto one = hn::Set(integers, 1);
    for (size_t t = job.n; t-- > 0;) {
        const auto decision = hn::And(hn::Shr(hn::LoadU(integers, column + t * kTrials), state), one);
        const auto low = hn::And(hn::ShiftRight<2>(state), one);
        const auto high = hn::And(hn::Xor3(state, hn::ShiftRight<1>(state), decision), one);
        const auto subset = hn::IndicesFromVec(d, hn::Or(low, hn::Add(high, high)));
        const auto x = load_element<kRowsAtOnce>(d, job, t, inverse_scale);
        const auto& thresholds = job.alphabets[job.bits[t]].threshold;
        auto rest = hn::Zero(integers);
        for (size_t i = 0; i + 1 < size_t{1} << (job.bits[t] - 1); ++i) {
            const auto threshold = hn::TableLookupLanes(hn::LoadDup128(d, thresholds[i].data()), subset);
            rest = hn::Add(rest, hn::IfThenElseZero(hn::RebindMask(integers, hn::Gt(x, threshold)), one));
        }
        hn::StoreU(hn::Or(hn::And(state, one), hn::Add(rest, rest)), integers, column + t * kTrials);
        state = hn::Or(hn::ShiftRight<1>(state), hn::ShiftLeft<2>(decision));
    }
}

void run_four_rows(const TrellisJob& job) {
    const hn::CappedTag<float, kTrials> d;
    for (size_t first = 0; first < kTrials; first += hn::Lanes(d)) {
        run_trials<kRows>(d, job, first);
    }
}

void run_one_row(const TrellisJob& job) {
    run_trials<1>(hn::FixedTag<float, kScales>(), job, 0);
}

}  // namespace
}  // namespace kvcodec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(run_four_rows);
HWY_EXPORT(run_one_row);

}  // namespace

const Trellis::Levels& Trellis::levels(unsigned bits) {
    static const auto instance = [] {
        // Measured over Gaussian vectors of 64 and 128 elements.
        constexpr std::array<double, kMaxBits + 1> kLosses = {1.0, 0.307, 0.0845, 0.0222, 0.0058, 0.0016, 0.00042};
        std::array<Levels, kMaxBits + 1> all;
        all[0].loss = kLosses[0];
        for (unsigned b = 1; b <= kMaxBits; ++b) {
            const std::vector<double> positive = positive_levels(b);
            all[b].loss = kLosses[b];
            all[b].unit = static_cast<float>(positive.back() / 127.0);
            for (size_t i = 0; i < positive.size(); ++i) {
                const auto level = static_cast<int8_t>(std::lround(positive[i] / positive.back() * 127.0));
                all[b].level[positive.size() + i] = level;
                all[b].level[positive.size() - 1 - i] = static_cast<int8_t>(-level);
            }
        }
        return all;
    }();
    return instance[bits];
}

TrellisEncoder::TrellisEncoder(std::vector<uint8_t> bits, std::vector<float> weight)
    : bits_(std::move(bits)), weight_(std::move(weight)) {
    const auto valid = [](uint8_t b) { return b >= 1 && b <= Trellis::kMaxBits; };
    if (bits_.size() > kMaxElements || weight_.size() != bits_.size() || !std::ranges::all_of(bits_, valid)) {
        throw Error("a trellis has at most " + std::to_string(kMaxElements) + " elements of 1 to " +
                    std::to_string(Trellis::kMaxBits) + " bits");
    }
}

void TrellisEncoder::encode(const float* y, size_t n, const float* scales, uint8_t* index, Choice* choice) const {
    const size_t n_elements = bits_.size();
    alignas(64) std::array<float, kRows * kMaxElements> transposed;
    alignas(64) std::array<int32_t, kTrials * kMaxElements> trial_index;
    alignas(64) std::array<float, kTrials> inverse_scales;
    alignas(64) std::array<float, kTrials> cost;
    const TrellisJob job{alphabets().data(), bits_.data(),          weight_.data(), n_elements,
                         transposed.data(),  inverse_scales.data(), cost.data(),    trial_index.data()};
    // Row by row at the end: a single row takes half the time of four.
    for (size_t row = 0, n_rows = 0; row < n; row += n_rows) {
        n_rows = n - row >= kRows ? kRows : 1;
        for (size_t r = 0; r < n_rows; ++r) {
            for (size_t s = 0; s < kScales; ++s) {
                inverse_scales[s * n_rows + r] = 1.0F / scales[(row + r) * kScales + s];
            }
            for (size_t t = 0; t < n_elements; ++t) {
                transposed[t * n_rows + r] = y[(row + r) * n_elements + t];
            }
        }
        if (n_rows == kRows) {
            HWY_DYNAMIC_DISPATCH(run_four_rows)(job);
        } else {
            HWY_DYNAMIC_DISPATCH(run_one_row)(job);
        }
        for (size_t r = 0; r < n_rows; ++r) {
            Choice& best = choice[row + r];
            best.error = INFINITY;
            for (size_t s = 0; s < kScales; ++s) {
                const float scale = scales[(row + r) * kScales + s];
                if (const float error = cost[s * n_rows + r] * scale * scale; error < best.error) {
                    best = {s, error};
                }
            }
            for (size_t t = 0; t < n_elements; ++t) {
                index[(row + r) * n_elements + t] =
                    static_cast<uint8_t>(trial_index[t * kTrials + best.scale * n_rows + r]);
            }
        }
    }
}

}  // namespace kvcodec
#endif
