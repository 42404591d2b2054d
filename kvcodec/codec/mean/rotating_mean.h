// The RoPE-aware mean of K: a constant b before RoPE is R_t b after it, removed from keys before they are coded and
// given back to the scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvcodec/codec/rope.h"

namespace kvcodec {

/// Cosines and sines of t * omega for every pair, from three small tables (t = 4096 * top + 64 * mid + low). Shared by
/// all layers with the same RoPE.
class RopeTables {
  public:
    static constexpr size_t kBlock = 64;
    static constexpr size_t kMaxPairs = 256;
    /// Positions [0, kMaxPosition) come from the tables, all others are computed.
    static constexpr int64_t kMaxPosition = int64_t{1} << 20;

    explicit RopeTables(const Rope& rope);

    const Rope& rope() const { return rope_; }
    /// Pairs rounded up to whole vectors: half the length of a row of phases.
    size_t stride() const { return stride_; }
    size_t bytes() const {
        return phases_.size() * sizeof(float) + (waves_.size() + node_waves_.size()) * sizeof(int16_t);
    }

    /// Row of phases [2, stride], cosines then sines, of the part of t that each table holds; t in [0, kMaxPosition).
    const float* low(int64_t t) const { return row(t % 64); }
    const float* mid(int64_t t) const { return row(64 + t / 64 % 64); }
    const float* top(int64_t t) const { return row(128 + t / 4096); }
    /// Phases of any position, from its angles.
    void compute(int64_t t, float* phases) const;
    /// x_i <- R_{t_i} (x_i + mean) for x [n, stride], stride in floats; as Rope::rotate() to about 1e-6 of |x|. mean:
    /// [stride], or null for none.
    void rotate(const int32_t* positions, size_t n, float* x, size_t stride, const float* mean = nullptr) const;
    /// x_i <- R_{t_i}^-1 x_i.
    void unrotate(const int32_t* positions, size_t n, float* x, size_t stride) const;

    /// The tables below are of 16 bits, in units of 1 / kWaveScale.
    static constexpr int kWaveBits = 14;
    static constexpr int32_t kWaveScale = 1 << kWaveBits;
    /// [kBlock, 2]: cos(j * omega) and sin(j * omega) of pair i at the positions j of a block. From stride() on: two of
    /// the polynomials that are 1 at one node and 0 at the others, see kNodes.
    const int16_t* wave(size_t i) const { return waves_.data() + i * 2 * kBlock; }

    /// Waves of slow pairs, and sums of any number of them, are known over a block from their values at kNodes points:
    /// the polynomial through these is within 5e-5 of the amplitude.
    static constexpr size_t kNodes = 8;
    static constexpr size_t kNodePairs = kNodes / 2;
    bool is_slow(size_t pair) const;
    /// [kNodes, 2]: cosine and sine of a pair at the nodes, Chebyshev's of a block.
    const int16_t* node_wave(size_t pair) const { return node_waves_.data() + pair * 2 * kNodes; }

  private:
    const float* row(int64_t i) const { return phases_.data() + static_cast<size_t>(i) * 2 * stride_; }

    Rope rope_;
    size_t stride_ = 0;
    std::vector<float> phases_;        // [64 low + 64 mid + 256 top, 2, stride]
    std::vector<int16_t> waves_;       // [stride + kNodePairs, kBlock, 2]
    std::vector<int16_t> node_waves_;  // [n_pairs, kNodes, 2]
};

/// R_t b for the KV heads of one layer, and its products with queries. Without rotation it is a plain mean.
///
/// Pairs of b that carry next to no energy are set to zero at construction: they cost time at every score, and the
/// codec can code them. subtract(), add() and score() see the same b, so this is never an error. Values agree with R_t
/// b in double to about 1e-6 of |b|, scores of consecutive positions to about 1e-4 of |q| |b|.
class RotatingMean {
  public:
    static constexpr size_t kBlock = RopeTables::kBlock;
    /// Share of |b|^2 that dropped pairs may hold together: 1e-4 of |b|.
    static constexpr double kDroppedEnergy = 1e-8;

    /// No mean.
    RotatingMean() = default;
    /// mean: [n_head_kv, dim], before RoPE.
    RotatingMean(std::shared_ptr<const RopeTables> tables, const std::vector<float>& mean, size_t n_head_kv,
                 double dropped_energy = kDroppedEnergy);

    bool empty() const { return heads_.empty(); }
    /// Whether positions matter: without RoPE they do not, and may be null below.
    bool rotates() const { return !empty() && tables_->rope().rotates(); }
    /// Resident bytes, shared tables not included.
    size_t bytes() const;
    /// Pairs that a head keeps.
    size_t n_pairs(size_t head) const { return heads_[head].n_pairs; }

    /// x_i -= R_{t_i} b for x [n, stride], stride in floats.
    void subtract(size_t head, const int32_t* positions, size_t n, float* x, size_t stride) const;
    /// x_i += R_{t_i} b for x [n, stride], stride in floats.
    void add(size_t head, const int32_t* positions, size_t n, float* x, size_t stride) const;

    /// Length of `prepared`; lanes is a multiple of 4.
    size_t prepared_floats(size_t lanes) const;
    /// What score() needs of the queries q [lanes, dim]. Zeros in the last lanes cost it nothing.
    void prepare(size_t head, const float* q, size_t lanes, float* prepared) const;
    /// s[i, lane] += q_lane . R_{t_i} b for n <= kBlock positions; fast where positions are consecutive.
    void score(const float* prepared, size_t lanes, const int32_t* positions, size_t n, float* s) const;

    /// One head's b.
    struct Head {
        size_t n_pairs = 0;           ///< kept
        std::vector<uint32_t> waves;  ///< RopeTables::wave() that are summed: fast pairs, what interpolates the others
        std::vector<uint32_t> slow;   ///< kept pairs whose sum is interpolated
        std::vector<float> rotated;   ///< [2, RopeTables::stride()]: first, then second elements, times magnitude
        std::vector<float> constant;  ///< elements that RoPE leaves alone
    };

  private:
    std::shared_ptr<const RopeTables> tables_;
    std::vector<Head> heads_;
};

}  // namespace kvcodec
