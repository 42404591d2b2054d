// Orthogonal matching pursuit, vectorised over atoms: the atoms are packed once a call into blocks [dim, block], so any
// number of vectors, even one, uses full SIMD width.
//
// Two variants:
//   direct  finds, atom by atom, an orthonormal basis q_1..q_s of the support (D_S = Q L^T), so that a new atom never
//           changes earlier projections a_k = q_k . x, keeps the residual and multiplies it with all atoms for each
//           choice: N dim MACs an atom.
//   Gram    takes G_S c from D x for each choice, G = D D^T built once a call: N k MACs for the k-th atom. The inverse
//           of the support's own part of G grows with it by bordering, and gives c.
//
// What only chooses is in 16 bits: atoms, the vectors that they are multiplied with, G and c. A choice may miss the
// best one by some 2e-5 of the residual's norm (direct) or of the vector's (Gram), with 65536 atoms and short vectors
// by 8e-5 (Numbering). Coefficients are fitted with the atoms as they are.
#include "kvcodec/codec/dictionary/omp.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kvcodec/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/dictionary/omp.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep

#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "kvcodec/short_products-inl.h"
#include "kvcodec/vector-inl.h"

#ifndef KVCODEC_CODEC_DICTIONARY_OMP_JOB
#define KVCODEC_CODEC_DICTIONARY_OMP_JOB
namespace kvcodec {
namespace {

/// The arguments of omp_encode.
struct OmpJob {
    const float* atoms;
    size_t n_atoms, dim;
    const float* x;
    size_t n;
    OmpOptions options;
    uint16_t* index;
    float* coefficient;
    uint8_t* count;
    float* residual_energy;
    float* support_gram;
};

// Correlations of a unit vector below this are rounding noise: they could lower the residual by 1e-12 at most.
constexpr float kNegligibleCorrelation = 1e-6F;
// Squared distance of a new atom from the span of the support below which it counts as dependent.
constexpr float kMinPivot = 1e-5F;

/// Below these, 16 bits cannot tell correlations of a unit vector and squared pivots from rounding, nor how much is
/// left of it; the Gram variant leaves such rows to the direct one.
constexpr float kGramCorrelation = 2e-4F;
constexpr float kGramPivot = 1e-3F;
constexpr float kGramRemaining = 1e-4F;
/// Beyond this correlation of a support's atom with what the fit leaves, one step of refinement is not enough.
constexpr float kGramGradient = 1e-3F;
/// Above these, a fit with the atoms in 16 bits is less than 1e-3 of the vector away from the best one, and what it
/// leaves is known to 1 %.
constexpr float kGramFitPivot = 0.03F;
constexpr float kGramFitRemaining = 0.02F;
/// A step that gains more than this part of what was left leaves too few digits of it.
constexpr float kGramGain = 1e-3F;
/// The Gram variant has this many bits for coefficients above 1, times the longest atom.
constexpr int kHeadroomBits = 2;

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using short_products::add_products;
using short_products::kUnitLevel;
using short_products::pairs;
using short_products::round_pairs;
using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
using IntTag = hn::RebindToSigned<Tag>;
using IntVec = hn::Vec<IntTag>;
using Floats = hwy::AlignedFreeUniquePtr<float[]>;
using Ints = hwy::AlignedFreeUniquePtr<int32_t[]>;

constexpr Tag kTag;
constexpr IntTag kIntTag;
constexpr short_products::ShortTag kShortTag;
constexpr size_t kLanes = hn::MaxLanes(kTag);
// Atoms in one packed block: two vectors, so that each broadcast element of a row serves two multiply-adds.
constexpr size_t kBlock = 2 * kLanes;
// Rows multiplied together; with two vectors each (four on Arm), the sums fill 16 of 32 or 12 of 16 registers.
constexpr size_t kRows = HWY_ARCH_ARM ? 4 : HWY_TARGET <= HWY_AVX3 ? 8 : 6;
// Atoms per step of the Gram variant: enough independent sums to hide the latency of multiply-adds.
constexpr size_t kChunk = 4 * kLanes;

template <typename T>
hwy::AlignedFreeUniquePtr<T[]> allocate(size_t n) {
    auto memory = hwy::AllocateAligned<T>(n);
    if (memory == nullptr) {
        throw Error("memory for a dictionary's products cannot be had");
    }
    return memory;
}

// to[c, kBlock][r] = from[r, stride][c] for r, c < 4.
HWY_INLINE void transpose_4x4(const int32_t* from, size_t stride, int32_t* to) {
    const hn::FixedTag<int32_t, 4> four;
    const auto row0 = hn::LoadU(four, from), row1 = hn::LoadU(four, from + stride);
    const auto row2 = hn::LoadU(four, from + 2 * stride), row3 = hn::LoadU(four, from + 3 * stride);
    const auto low01 = hn::InterleaveLower(four, row0, row1), low23 = hn::InterleaveLower(four, row2, row3);
    const auto high01 = hn::InterleaveUpper(four, row0, row1), high23 = hn::InterleaveUpper(four, row2, row3);
    hn::StoreU(hn::ConcatLowerLower(four, low23, low01), four, to);
    hn::StoreU(hn::ConcatUpperUpper(four, low23, low01), four, to + kBlock);
    hn::StoreU(hn::ConcatLowerLower(four, high23, high01), four, to + 2 * kBlock);
    hn::StoreU(hn::ConcatUpperUpper(four, high23, high01), four, to + 3 * kBlock);
}

// The atoms times `scale` in 16 bits, in pairs of elements, transposed block by block: [n_padded / kBlock, pairs(dim),
// kBlock]. Padding atoms are zero and never chosen.
struct PackedAtoms {
    PackedAtoms(const float* atoms, size_t n_atoms, size_t dim, bool use_short_products)
        : n_padded((n_atoms + kChunk - 1) / kChunk * kChunk),
          n_pairs(pairs(dim)),
          short_products(use_short_products),
          data(allocate<int32_t>(n_padded * n_pairs)) {
        float largest = 0.0F;
        for (size_t j = 0; j < n_atoms; ++j) {
            largest = std::max(largest, dot(atoms + j * dim, atoms + j * dim, dim));
        }
        scale = largest > 0.0F ? kUnitLevel / std::sqrt(largest) : 0.0F;
        std::vector<int32_t> rows(kBlock * n_pairs);
        for (size_t first = 0; first < n_padded; first += kBlock) {
            const size_t begin = std::min(first, n_atoms), n = std::min(kBlock, n_atoms - begin);
            for (size_t j = 0; j < n; ++j) {
                round_pairs(atoms + (begin + j) * dim, dim, scale, &rows[j * n_pairs]);
            }
            std::fill(rows.begin() + static_cast<std::ptrdiff_t>(n * n_pairs), rows.end(), 0);
            int32_t* block = data.get() + first * n_pairs;
            for (size_t j = 0; j < kBlock; j += 4) {
                for (size_t i = 0; i < n_pairs / 4 * 4; i += 4) {
                    transpose_4x4(&rows[j * n_pairs + i], n_pairs, block + i * kBlock + j);
                }
                for (size_t i = n_pairs / 4 * 4; i < n_pairs; ++i) {
                    for (size_t r = 0; r < 4; ++r) {
                        block[i * kBlock + j + r] = rows[(j + r) * n_pairs + i];
                    }
                }
            }
        }
    }

    size_t n_padded;
    size_t n_pairs;
    float scale = 0.0F;
    bool short_products;
    Ints data;
};

// Products of R rows of pairs with the atoms of one block.
template <bool kVnni, size_t R>
HWY_INLINE void multiply_block(const int32_t* const* rows, size_t n_pairs, const int32_t* block, IntVec (&sum)[R][2]) {
    IntVec rest[R][2];
    for (size_t r = 0; r < R; ++r) {
        sum[r][0] = sum[r][1] = rest[r][0] = rest[r][1] = hn::Zero(kIntTag);
    }
    for (size_t i = 0; i < n_pairs; ++i) {
        const auto atoms0 = hn::BitCast(kShortTag, hn::Load(kIntTag, block + i * kBlock));
        const auto atoms1 = hn::BitCast(kShortTag, hn::Load(kIntTag, block + i * kBlock + kLanes));
        for (size_t r = 0; r < R; ++r) {
            const auto x = hn::BitCast(kShortTag, hn::Set(kIntTag, rows[r][i]));
            add_products<kVnni>(x, atoms0, sum[r][0], rest[r][0]);
            add_products<kVnni>(x, atoms1, sum[r][1], rest[r][1]);
        }
    }
    for (size_t r = 0; r < R; ++r) {
        sum[r][0] = hn::RearrangeToOddPlusEven(sum[r][0], rest[r][0]);
        sum[r][1] = hn::RearrangeToOddPlusEven(sum[r][1], rest[r][1]);
    }
}

template <size_t R>
HWY_INLINE void multiply_block(const int32_t* const* rows, const PackedAtoms& packed, size_t first,
                               IntVec (&sum)[R][2]) {
    const int32_t* block = packed.data.get() + first * packed.n_pairs;
    if (packed.short_products) {
        multiply_block<true>(rows, packed.n_pairs, block, sum);
    } else {
        multiply_block<false>(rows, packed.n_pairs, block, sum);
    }
}

// out[n_rows, n_padded] = rows . atoms, without the last kHeadroomBits, for n_rows <= R. Atoms before first_atom, the
// first one of a block, are left out.
template <size_t R = kRows>
void multiply(const int32_t* const* rows, size_t n_rows, const PackedAtoms& packed, int32_t* out,
              size_t first_atom = 0) {
    if constexpr (R > 1) {
        if (n_rows < R) {
            return multiply<R - 1>(rows, n_rows, packed, out, first_atom);
        }
    }
    for (size_t first = first_atom; first < packed.n_padded; first += kBlock) {
        IntVec sum[R][2];
        multiply_block(rows, packed, first, sum);
        for (size_t r = 0; r < R; ++r) {
            int32_t* to = out + r * packed.n_padded + first;
            hn::Store(hn::ShiftRight<kHeadroomBits>(sum[r][0]), kIntTag, to);
            hn::Store(hn::ShiftRight<kHeadroomBits>(sum[r][1]), kIntTag, to + kLanes);
        }
    }
}

struct Choice {
    float correlation;  ///< absolute
    size_t atom;
};

// Magnitudes of correlations with the number of the vector of atoms in place of their lower bits, so that the largest
// one tells where it is. Numbers fall, so that of equal magnitudes the first one counts most. Of the 28 bits of a
// unit vector's correlation in the Gram variant 65536 atoms leave 14 where vectors have four lanes, 1024 atoms 20; the
// direct one has two bits more.
class Numbering {
  public:
    explicit HWY_INLINE Numbering(size_t n_padded)
        : last_(std::bit_ceil(n_padded / kLanes) - 1),
          magnitude_bits_(hn::Set(kIntTag, ~static_cast<int32_t>(last_))) {}

    // Of the vector that begins with this atom.
    HWY_INLINE IntVec of(size_t first) const { return hn::Set(kIntTag, static_cast<int32_t>(last_ - first / kLanes)); }
    HWY_INLINE IntVec numbered(IntVec correlation, IntVec number) const {
        return hn::OrAnd(number, hn::Abs(correlation), magnitude_bits_);
    }
    // The largest one's atom, from the largest of each lane.
    HWY_INLINE size_t atom(IntVec largest) const {
        const IntVec best = hn::MaxOfLanes(kIntTag, largest);
        const size_t number = static_cast<size_t>(hn::GetLane(best)) & last_;
        return (last_ - number) * kLanes + static_cast<size_t>(hn::FindFirstTrue(kIntTag, hn::Eq(best, largest)));
    }
    // Its magnitude, rounded down.
    HWY_INLINE int32_t magnitude(IntVec largest) const {
        return hn::GetLane(hn::And(magnitude_bits_, hn::MaxOfLanes(kIntTag, largest)));
    }

  private:
    size_t last_;  // number: 2^n - 1
    IntVec magnitude_bits_;
};

// choice[r] = the atom that correlates most with row r, whose norm is norm[r] and kUnitLevel in 16 bits, for n_rows <=
// R. Not inlined: GCC 12 would keep sums in memory.
template <size_t R = kRows>
HWY_NOINLINE void choose(const int32_t* const* rows, const float* norm, size_t n_rows, const PackedAtoms& packed,
                         Choice* choice) {
    if constexpr (R > 1) {
        if (n_rows < R) {
            return choose<R - 1>(rows, norm, n_rows, packed, choice);
        }
    }
    IntVec largest[R];
    for (size_t r = 0; r < R; ++r) {
        largest[r] = hn::Zero(kIntTag);
    }
    const Numbering numbering(packed.n_padded);
    for (size_t first = 0; first < packed.n_padded; first += kBlock) {
        IntVec sum[R][2];
        multiply_block(rows, packed, first, sum);
        const IntVec number0 = numbering.of(first), number1 = numbering.of(first + kLanes);
        for (size_t r = 0; r < R; ++r) {
            const IntVec of0 = numbering.numbered(sum[r][0], number0), of1 = numbering.numbered(sum[r][1], number1);
            largest[r] = hn::Max(largest[r], hn::Max(of0, of1));
        }
    }
    for (size_t r = 0; r < R; ++r) {
        const float unit = norm[r] / (kUnitLevel * packed.scale);
        choice[r] = {unit * static_cast<float>(numbering.magnitude(largest[r])), numbering.atom(largest[r])};
    }
}

// One vector on its way: what both variants share.
class Pursuit {
  public:
    explicit Pursuit(const OmpJob& job) : job_(job), unit_(job.dim), rounded_(pairs(job.dim)) {}

    // Takes row `row` of x, scaled to unit norm so that no threshold depends on its size. False: code it as zero.
    bool start(size_t row) {
        const float* x = job_.x + row * job_.dim;
        const double energy = energy_of(x, job_.dim);
        row_ = row;
        count_ = 0;
        remaining_ = 1.0F;
        norm_ = std::sqrt(energy);
        if (!std::isfinite(norm_) || norm_ == 0.0) {
            return false;
        }
        const double scale = 1.0 / norm_;
        for (size_t i = 0; i < job_.dim; ++i) {
            unit_[i] = static_cast<float>(x[i] * scale);
        }
        round_pairs(unit_.data(), job_.dim, kUnitLevel, rounded_.data());
        return wants_more();
    }

    bool wants_more() const {
        const float delta = job_.options.relative_error;
        return count_ < job_.options.sparsity && (delta <= 0.0F || remaining_ > delta * delta);
    }

    // Whether the best choice is worth taking. An atom of the support is chosen again only when all correlations are
    // noise.
    bool accepts(const Choice& choice) const {
        return choice.correlation > kNegligibleCorrelation &&
               std::find(support_, support_ + count_, choice.atom) == support_ + count_;
    }

    // Takes an atom into the support; row count() of its Gram matrix is already filled, where one is wanted.
    void add(size_t atom) { support_[count_++] = static_cast<uint16_t>(atom); }

    // Writes the code of this row, whose coefficients() are those of the unit vector; an unstarted one is zero.
    // remaining: ||residual||^2 / ||x||^2.
    void finish(float remaining) {
        const size_t s = job_.options.sparsity;
        uint16_t* index = job_.index + row_ * s;
        std::fill(std::copy(support_, support_ + count_, index), index + s, uint16_t{0});
        float* coefficient = coefficients();
        for (size_t k = 0; k < count_; ++k) {
            coefficient[k] = static_cast<float>(coefficient[k] * norm_);
        }
        std::fill(coefficient + count_, coefficient + s, 0.0F);
        job_.count[row_] = static_cast<uint8_t>(count_);
        for (size_t i = 0; i < count_ && wants_gram(); ++i) {
            for (size_t j = 0; j < i; ++j) {
                gram(j)[i] = gram(i)[j];
            }
        }
        if (job_.residual_energy != nullptr) {
            const double energy = norm_ * norm_;
            job_.residual_energy[row_] =
                static_cast<float>(count_ > 0 ? energy * static_cast<double>(std::max(remaining, 0.0F)) : energy);
        }
    }

    // Takes the support's atoms times these from the unit vector. Returns the energy that is left.
    float subtract(const float* coefficient) {
        size_t i = 0;
        for (; i + kLanes <= job_.dim; i += kLanes) {
            Vec rest = hn::LoadU(kTag, unit_.data() + i);
            for (size_t k = 0; k < count_; ++k) {
                rest = hn::NegMulAdd(hn::Set(kTag, coefficient[k]), hn::LoadU(kTag, atom(k) + i), rest);
            }
            hn::StoreU(rest, kTag, unit_.data() + i);
        }
        for (size_t k = 0; k < count_; ++k) {
            add_multiple(-coefficient[k], atom(k) + i, job_.dim - i, unit_.data() + i);
        }
        return dot(unit_.data(), unit_.data(), job_.dim);
    }

    const float* unit() const { return unit_.data(); }
    /// The unit vector in 16 bits.
    const int32_t* rounded() const { return rounded_.data(); }
    size_t count() const { return count_; }
    float relative_error() const { return job_.options.relative_error; }
    size_t support(size_t k) const { return support_[k]; }
    /// Of what is left of the unit vector and the k-th atom of the support.
    float correlation(size_t k) const { return dot(atom(k), unit_.data(), job_.dim); }
    /// What the code will have, to be filled.
    float* coefficients() { return job_.coefficient + row_ * job_.options.sparsity; }
    const float* atom(size_t k) const { return job_.atoms + support_[k] * job_.dim; }
    bool wants_gram() const { return job_.support_gram != nullptr; }
    /// The k-th row of the support's Gram matrix, to be filled up to its diagonal.
    float* gram(size_t k) {
        const size_t s = job_.options.sparsity;
        return job_.support_gram + (row_ * s + k) * gram_stride(s);
    }
    /// ||residual||^2 / ||x||^2
    float remaining() const { return remaining_; }
    void set_remaining(float remaining) { remaining_ = remaining; }

  private:
    const OmpJob& job_;
    size_t row_ = 0, count_ = 0;
    double norm_ = 0.0;
    float remaining_ = 1.0F;
    std::vector<float> unit_;       // [dim]
    std::vector<int32_t> rounded_;  // [pairs(dim)]
    uint16_t support_[kMaxSparsity] = {};
};

// ---- direct --------------------------------------------------------------------------------------------------------

struct DirectPursuit {
    explicit DirectPursuit(const OmpJob& job)
        : pursuit(job),
          residual(job.dim),
          rounded(pairs(job.dim)),
          basis(job.options.sparsity * job.dim),
          factor(job.options.sparsity * job.options.sparsity) {}

    Pursuit pursuit;
    std::vector<float> residual;   // [dim]
    std::vector<int32_t> rounded;  // [pairs(dim)], of the residual's direction
    float norm = 0.0F;             // the residual's
    std::vector<float> basis;      // q [sparsity, dim]
    std::vector<float> factor;     // L [sparsity, sparsity], lower triangle
    float projection[kMaxSparsity] = {};
};

// Takes the chosen atom into the support. False: this pursuit is over.
bool extend(const OmpJob& job, const Choice& choice, DirectPursuit& state) {
    Pursuit& pursuit = state.pursuit;
    if (!pursuit.accepts(choice)) {
        return false;
    }
    const size_t dim = job.dim, k = pursuit.count();
    const float* atom = job.atoms + choice.atom * dim;
    const float* basis = state.basis.data();
    float* q = state.basis.data() + k * dim;
    float* factor = state.factor.data() + k * job.options.sparsity;
    for (size_t i = 0; i < k; ++i) {
        factor[i] = dot(basis + i * dim, atom, dim);
    }
    std::copy(atom, atom + dim, q);
    for (size_t i = 0; i < k; ++i) {
        add_multiple(-factor[i], basis + i * dim, dim, q);
    }
    const float pivot_energy = dot(q, q, dim);
    if (pivot_energy < kMinPivot) {
        return false;
    }
    const float pivot = std::sqrt(pivot_energy);
    for (size_t i = 0; i < dim; ++i) {
        q[i] /= pivot;
    }
    float* residual = state.residual.data();
    state.projection[k] = dot(q, residual, dim);
    if (std::abs(state.projection[k]) * pivot <= kNegligibleCorrelation) {  // 16 bits saw noise
        return false;
    }
    add_multiple(-state.projection[k], q, dim, residual);
    factor[k] = pivot;
    pursuit.add(choice.atom);
    for (size_t i = 0; i <= k && pursuit.wants_gram(); ++i) {
        pursuit.gram(k)[i] = dot(pursuit.atom(i), atom, dim);
    }
    pursuit.set_remaining(dot(residual, residual, dim));
    state.norm = std::sqrt(pursuit.remaining());
    if (!pursuit.wants_more() || state.norm <= kNegligibleCorrelation) {
        return false;
    }
    round_pairs(residual, dim, kUnitLevel / state.norm, state.rounded.data());
    return true;
}

void finish(const OmpJob& job, DirectPursuit& state) {
    Pursuit& pursuit = state.pursuit;
    float* coefficient = pursuit.coefficients();
    const float* factor = state.factor.data();
    const size_t s = job.options.sparsity;
    for (size_t k = pursuit.count(); k-- > 0;) {
        coefficient[k] = state.projection[k];
        for (size_t j = k + 1; j < pursuit.count(); ++j) {
            coefficient[k] -= factor[j * s + k] * coefficient[j];
        }
        coefficient[k] /= factor[k * s + k];
    }
    pursuit.finish(job.residual_energy != nullptr ? pursuit.subtract(coefficient) : 0.0F);
}

void encode_direct(const OmpJob& job, const PackedAtoms& packed, const std::vector<size_t>& rows_of_x) {
    std::vector<DirectPursuit> states(std::min(kRows, rows_of_x.size()), DirectPursuit(job));
    for (size_t first = 0; first < rows_of_x.size(); first += states.size()) {
        const size_t n_rows = std::min(states.size(), rows_of_x.size() - first);
        DirectPursuit* active[kRows];
        size_t n_active = 0;
        for (size_t r = 0; r < n_rows; ++r) {
            DirectPursuit& state = states[r];
            if (state.pursuit.start(rows_of_x[first + r])) {
                std::copy_n(state.pursuit.unit(), job.dim, state.residual.data());
                std::copy_n(state.pursuit.rounded(), pairs(job.dim), state.rounded.data());
                state.norm = 1.0F;
                active[n_active++] = &state;
            }
        }
        while (n_active > 0) {
            const int32_t* rows[kRows];
            float norm[kRows];
            Choice choice[kRows];
            for (size_t a = 0; a < n_active; ++a) {
                rows[a] = active[a]->rounded.data();
                norm[a] = active[a]->norm;
            }
            choose(rows, norm, n_active, packed, choice);
            size_t n_left = 0;
            for (size_t a = 0; a < n_active; ++a) {
                if (extend(job, choice[a], *active[a])) {
                    active[n_left++] = active[a];
                }
            }
            n_active = n_left;
        }
        for (size_t r = 0; r < n_rows; ++r) {
            finish(job, states[r]);
        }
    }
}

// ---- Gram ----------------------------------------------------------------------------------------------------------

// to[c, stride][r] = from[r, stride][c] for r, c < kTile.
constexpr size_t kTile = 8;
HWY_INLINE void transpose_tile(const int16_t* from, size_t stride, int16_t* to) {
    const hn::FixedTag<int16_t, kTile> d16;
    const hn::Repartition<int32_t, decltype(d16)> d32;
    const hn::Repartition<int64_t, decltype(d16)> d64;
    hn::Vec<decltype(d32)> pair[kTile];  // of rows, the columns of the lower or the upper half
    for (size_t r = 0; r < kTile; r += 2) {
        const auto row0 = hn::LoadU(d16, from + r * stride), row1 = hn::LoadU(d16, from + (r + 1) * stride);
        pair[r] = hn::BitCast(d32, hn::InterleaveLower(d16, row0, row1));
        pair[r + 1] = hn::BitCast(d32, hn::InterleaveUpper(d16, row0, row1));
    }
    for (size_t half = 0; half < 2; ++half) {
        for (size_t quarter = 0; quarter < 2; ++quarter) {
            const auto interleave = [quarter, d32, d64](auto a, auto b) HWY_ATTR {
                return hn::BitCast(d64, quarter == 0 ? hn::InterleaveLower(d32, a, b) : hn::InterleaveUpper(d32, a, b));
            };
            const auto rows03 = interleave(pair[half], pair[half + 2]);
            const auto rows47 = interleave(pair[half + 4], pair[half + 6]);
            int16_t* column = to + (4 * half + 2 * quarter) * stride;
            hn::StoreU(hn::BitCast(d16, hn::InterleaveLower(d64, rows03, rows47)), d16, column);
            hn::StoreU(hn::BitCast(d16, hn::InterleaveUpper(d64, rows03, rows47)), d16, column + stride);
        }
    }
}

// The Gram matrix of the rounded atoms, in 16 bits too: a row comes once a choice from the farthest cache. Columns are
// in the order that ReorderDemote2To() leaves, of which InterleaveLower() and InterleaveUpper() of two rows give pairs
// in the order of the atoms; rows are too, so that it is symmetric.
class Gram {
  public:
    Gram(const OmpJob& job, const PackedAtoms& packed)
        : n_atoms_(job.n_atoms),
          n_padded_(packed.n_padded),
          unit_(static_cast<float>(1U << kShift) * static_cast<float>(1U << kHeadroomBits) /
                (packed.scale * packed.scale)),
          levels_(allocate<int16_t>(packed.n_padded * packed.n_padded)),
          diagonal_(job.n_atoms) {
        std::vector<int32_t> rounded(kRows * packed.n_pairs);
        const Ints products = allocate<int32_t>(kRows * n_padded_);
        const IntVec half = hn::Set(kIntTag, 1 << (kShift - 1));
        for (size_t first = 0; first < n_atoms_; first += kRows) {
            const size_t n_rows = std::min(kRows, n_atoms_ - first);
            const int32_t* rows[kRows];
            for (size_t r = 0; r < n_rows; ++r) {
                int32_t* row = &rounded[r * packed.n_pairs];
                round_pairs(job.atoms + (first + r) * job.dim, job.dim, packed.scale, row);
                rows[r] = row;
            }
            const size_t first_column = first / kBlock * kBlock;
            multiply(rows, n_rows, packed, products.get(), first_column);
            for (size_t r = 0; r < n_rows; ++r) {
                const int32_t* from = products.get() + r * n_padded_;
                int16_t* to = levels_.get() + place(first + r) * n_padded_;
                for (size_t i = first_column; i < n_padded_; i += kBlock) {
                    const IntVec level0 = hn::ShiftRight<kShift>(hn::Add(hn::Load(kIntTag, from + i), half));
                    const IntVec level1 = hn::ShiftRight<kShift>(hn::Add(hn::Load(kIntTag, from + i + kLanes), half));
                    hn::Store(hn::ReorderDemote2To(kShortTag, level0, level1), kShortTag, to + i);
                }
                diagonal_[first + r] = to[place(first + r)];
            }
        }
        for (size_t padding = n_atoms_; padding < n_padded_; ++padding) {
            std::fill_n(levels_.get() + place(padding) * n_padded_, n_padded_, int16_t{0});
        }
        mirror();
    }

    const int16_t* row(size_t atom) const { return levels_.get() + place(atom) * n_padded_; }
    // Asks for the row's first KiB; what follows comes in order, as the processor expects.
    HWY_INLINE void prefetch(size_t atom) const {
        constexpr size_t kLine = 64 / sizeof(int16_t), kAhead = 16 * kLine;
        for (size_t i = 0; i < std::min(n_padded_, kAhead); i += kLine) {
            hwy::Prefetch(row(atom) + i);
        }
    }
    int16_t diagonal(size_t atom) const { return diagonal_[atom]; }
    /// What one level is worth.
    float unit() const { return unit_; }

  private:
    static constexpr int kShift = 15 - kHeadroomBits;  // of a product

    // Blocks of 16 bytes hold four atoms of one vector of 32-bit numbers, then four of the next one.
    static HWY_INLINE size_t place(size_t atom) {
        return atom / kBlock * kBlock + atom % kLanes / 4 * 8 + atom / kLanes % 2 * 4 + atom % 4;
    }

    // What is below the diagonal, of what is above it. Tiles on the diagonal were multiplied as a whole.
    void mirror() {
        static_assert(kBlock % kTile == 0);
        int16_t* levels = levels_.get();
        // Whole lines of the caches one after another.
        constexpr size_t kColumns = 64 / sizeof(int16_t);
        for (size_t first = 0; first < n_padded_; first += kColumns) {
            for (size_t row = first + kTile; row < n_padded_; row += kTile) {
                for (size_t column = first; column < std::min(first + kColumns, row); column += kTile) {
                    transpose_tile(levels + column * n_padded_ + row, n_padded_, levels + row * n_padded_ + column);
                }
            }
        }
    }

    size_t n_atoms_, n_padded_;
    float unit_;
    hwy::AlignedFreeUniquePtr<int16_t[]> levels_;  // [n_padded, n_padded]
    std::vector<int16_t> diagonal_;                // apart, so that nobody waits for a far row
};

// Brings one pursuit after the other to its end. What depends on the support's size is done in whole groups of its
// atoms, those to come being zero: a processor mispredicts the ends of loops whose lengths change, and everything here
// waits for what was before.
class GramPursuit {
  public:
    GramPursuit(const OmpJob& job, const PackedAtoms& packed, const Gram& gram)
        : sparsity_(job.options.sparsity),
          stride_(gram_stride(sparsity_)),
          n_padded_(packed.n_padded),
          numbering_(packed.n_padded),
          short_products_(packed.short_products),
          refines_(job.options.refine || job.options.relative_error > 0.0F),
          gram_(gram),
          correlation_unit_(static_cast<float>(1U << kHeadroomBits) / (kUnitLevel * packed.scale)),
          levels_per_coefficient_(gram_.unit() / correlation_unit_),
          rows_(allocate<int32_t>(pairs(stride_) * n_padded_)),
          inverse_(allocate<float>(stride_ * stride_)) {
        std::fill_n(rows_.get(), pairs(stride_) * n_padded_, 0);
    }

    // Brings a started pursuit to its end and writes its code. correlations: D x, as multiply() gives it. False: 16
    // bits cannot tell.
    bool run(const int32_t* correlations, Pursuit& pursuit) {
        pursuit_ = &pursuit;
        correlations_ = correlations;
        std::fill_n(inverse_.get(), stride_ * stride_, 0.0F);
        std::fill_n(coefficient_, stride_, 0.0F);
        std::fill_n(levels_, pairs(stride_), 0);
        std::fill_n(support_, stride_, -1);
        smallest_pivot_energy_ = 1.0F;
        IntVec largest = largest_correlations();
        while (extend(numbering_.atom(largest))) {
            if (is_at_threshold()) {
                return false;
            }
            if (!pursuit.wants_more()) {
                return finish();
            }
            if (!round_coefficients()) {
                return false;
            }
            largest = add_row(pursuit.support(pursuit.count() - 1));
        }
        return false;
    }

  private:
    static constexpr size_t kGroup = gram_stride(1);
    using GroupTag = hn::CappedTag<float, kGroup>;
    using GroupVec = hn::Vec<GroupTag>;
    using GroupIntTag = hn::RebindToSigned<GroupTag>;
    static constexpr GroupTag kGroupTag{};
    static constexpr GroupIntTag kGroupIntTag{};
    static constexpr size_t kGroupLanes = hn::MaxLanes(kGroupTag);

    // Elements [v, v + kGroupLanes) of A^-1 x, A the support's Gram matrix, x of whole groups.
    HWY_INLINE GroupVec solved(const float* x, size_t n, size_t v) const {
        const float* row = inverse_.get() + v;
        GroupVec sum[4] = {hn::Zero(kGroupTag), hn::Zero(kGroupTag), hn::Zero(kGroupTag), hn::Zero(kGroupTag)};
        for (size_t i = 0; i < n; i += kGroup) {
            for (size_t j = 0; j < kGroup; ++j, row += stride_) {
                sum[j % 4] = hn::MulAdd(hn::Set(kGroupTag, x[i + j]), hn::Load(kGroupTag, row), sum[j % 4]);
            }
        }
        return hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
    }

    // Takes an atom into the support and fits the coefficients anew. False: it correlates too little, or is in the
    // support's span or too close to it.
    bool extend(size_t atom) {
        Pursuit& pursuit = *pursuit_;
        const size_t k = pursuit.count(), n = gram_stride(k + 1);
        if (k + 1 < sparsity_) {
            gram_.prefetch(atom);
        }
        const float correlation = look_up(atom, n);
        // w = A^-1 products: the atom's projection to the span, by the support's atoms. At its own place stands -1.
        GroupVec within = hn::Zero(kGroupTag);
        hn::Vec<GroupIntTag> seen = hn::Zero(kGroupIntTag);
        for (size_t v = 0; v < n; v += kGroupLanes) {
            const GroupVec w = solved(products_, n, v);
            within = hn::MulAdd(w, hn::Load(kGroupTag, products_ + v), within);
            const auto is_own =
                hn::Eq(hn::Iota(kGroupTag, static_cast<float>(v)), hn::Set(kGroupTag, static_cast<float>(k)));
            const auto is_seen =
                hn::Eq(hn::Set(kGroupIntTag, static_cast<int32_t>(atom)), hn::Load(kGroupIntTag, support_ + v));
            seen = hn::Or(seen, hn::VecFromMask(kGroupIntTag, is_seen));
            hn::Store(hn::IfThenElse(is_own, hn::Set(kGroupTag, -1.0F), w), kGroupTag, projection_ + v);
        }
        const float energy = gram_.unit() * static_cast<float>(gram_.diagonal(atom));
        const float pivot_energy = energy - hn::GetLane(hn::SumOfLanes(kGroupTag, within));
        if (!(std::abs(correlation) >= kGramCorrelation) || !(pivot_energy >= kGramPivot) ||
            !hn::AllTrue(kGroupIntTag, hn::Eq(seen, hn::Zero(kGroupIntTag)))) {
            return false;
        }
        const GroupVec step = hn::Set(kGroupTag, correlation / pivot_energy);
        const GroupVec inverse_pivot = hn::Set(kGroupTag, 1.0F / pivot_energy);
        for (size_t v = 0; v < n; v += kGroupLanes) {
            const GroupVec w = hn::Load(kGroupTag, projection_ + v);
            hn::Store(hn::NegMulAdd(step, w, hn::Load(kGroupTag, coefficient_ + v)), kGroupTag, coefficient_ + v);
            const GroupVec scaled = hn::Mul(inverse_pivot, w);
            float* row = inverse_.get() + v;
            for (size_t i = 0; i < n; ++i, row += stride_) {  // A^-1 += w w^T / pivot^2
                hn::Store(hn::MulAdd(hn::Set(kGroupTag, projection_[i]), scaled, hn::Load(kGroupTag, row)), kGroupTag,
                          row);
            }
        }
        if (pursuit.wants_gram()) {
            std::copy_n(products_, n, pursuit.gram(k));
            pursuit.gram(k)[k] = energy;
        }
        smallest_pivot_energy_ = std::min(smallest_pivot_energy_, pivot_energy);
        support_[k] = static_cast<int32_t>(atom);
        pursuit.add(atom);
        pursuit.set_remaining(pursuit.remaining() - correlation * correlation / pivot_energy);
        return true;
    }

    // Whether what is left is too near to what the caller allows. Errors of correlations count divided by the pivots.
    bool is_at_threshold() const {
        const float delta = pursuit_->relative_error();
        return delta > 0.0F && pursuit_->count() < sparsity_ &&
               std::abs(pursuit_->remaining() - delta * delta) < kGramRemaining / std::sqrt(smallest_pivot_energy_);
    }

    // levels_ = -coefficient_ in 16 bits. False: one is out of range.
    bool round_coefficients() {
        const hn::Rebind<int16_t, GroupTag> shorts;
        const hn::Repartition<int32_t, decltype(shorts)> pair_tag;
        const GroupVec levels_per_coefficient = hn::Set(kGroupTag, -levels_per_coefficient_);
        GroupVec largest = hn::Zero(kGroupTag);
        for (size_t v = 0; v < gram_stride(pursuit_->count()); v += kGroupLanes) {
            const GroupVec level = hn::Mul(levels_per_coefficient, hn::Load(kGroupTag, coefficient_ + v));
            largest = hn::Max(largest, hn::Abs(level));
            hn::Store(hn::BitCast(pair_tag, hn::DemoteTo(shorts, hn::NearestInt(level))), pair_tag, levels_ + v / 2);
        }
        return hn::AllTrue(kGroupTag, hn::Le(largest, hn::Set(kGroupTag, kUnitLevel)));
    }

    // Adds the new atom's row of G to the others. Returns the largest correlation of the residual in each lane,
    // numbered.
    IntVec add_row(size_t atom) {
        const size_t n_pairs = (pursuit_->count() - 1) / 2;
        if (pursuit_->count() % 2 != 0) {
            return short_products_ ? add_row<true, false>(atom, n_pairs) : add_row<false, false>(atom, n_pairs);
        }
        return short_products_ ? add_row<true, true>(atom, n_pairs) : add_row<false, true>(atom, n_pairs);
    }

    // Behind n_pairs full pairs of rows, the second of a pair or the first. Not inlined and without arrays of vectors:
    // GCC 12 would keep them in memory.
    template <bool kVnni, bool kSecond>
    HWY_NOINLINE IntVec add_row(size_t atom, size_t n_pairs) {
        const size_t n_padded = n_padded_;
        const int32_t* levels = levels_;
        const int32_t* rows = rows_.get();
        const int32_t* correlations = correlations_;
        const int16_t* row_of_gram = gram_.row(atom);
        const int16_t* before = gram_.row(kSecond ? pursuit_->support(pursuit_->count() - 2) : atom);
        int32_t* pair = rows_.get() + n_pairs * n_padded;
        const Numbering numbering = numbering_;
        IntVec largest = hn::Zero(kIntTag);
        for (size_t first = 0; first < n_padded; first += kChunk) {
            const IntVec zero = hn::Zero(kIntTag);
            IntVec sum0 = zero, sum1 = zero, sum2 = zero, sum3 = zero;
            IntVec rest0 = zero, rest1 = zero, rest2 = zero, rest3 = zero;
            const int32_t* row = rows + first;
            for (size_t i = 0; i < n_pairs; ++i, row += n_padded) {
                const auto factor = hn::BitCast(kShortTag, hn::Set(kIntTag, levels[i]));
                add_products<kVnni>(factor, load_pairs(row), sum0, rest0);
                add_products<kVnni>(factor, load_pairs(row + kLanes), sum1, rest1);
                add_products<kVnni>(factor, load_pairs(row + 2 * kLanes), sum2, rest2);
                add_products<kVnni>(factor, load_pairs(row + 3 * kLanes), sum3, rest3);
            }
            const auto factor = hn::BitCast(kShortTag, hn::Set(kIntTag, levels[n_pairs]));
            store_pairs<kSecond>(before + first, row_of_gram + first, pair);
            add_products<kVnni>(factor, load_pairs(pair), sum0, rest0);
            add_products<kVnni>(factor, load_pairs(pair + kLanes), sum1, rest1);
            store_pairs<kSecond>(before + first + kBlock, row_of_gram + first + kBlock, pair + kBlock);
            add_products<kVnni>(factor, load_pairs(pair + 2 * kLanes), sum2, rest2);
            add_products<kVnni>(factor, load_pairs(pair + 3 * kLanes), sum3, rest3);
            const IntVec p0 = total(correlations, sum0, rest0), p1 = total(correlations + kLanes, sum1, rest1);
            const IntVec p2 = total(correlations + 2 * kLanes, sum2, rest2);
            const IntVec p3 = total(correlations + 3 * kLanes, sum3, rest3);
            const IntVec of01 = hn::Max(numbering.numbered(p0, numbering.of(first)),
                                        numbering.numbered(p1, numbering.of(first + kLanes)));
            const IntVec of23 = hn::Max(numbering.numbered(p2, numbering.of(first + 2 * kLanes)),
                                        numbering.numbered(p3, numbering.of(first + 3 * kLanes)));
            largest = hn::Max(largest, hn::Max(of01, of23));
            correlations += kChunk;
            pair += kChunk;
        }
        return largest;
    }

    static HWY_INLINE hn::Vec<decltype(kShortTag)> load_pairs(const int32_t* from) {
        return hn::BitCast(kShortTag, hn::Load(kIntTag, from));
    }

    // pair[kBlock]: elements of a row of G, each behind that of the row before it, if there is one.
    template <bool kHasBefore>
    static HWY_INLINE void store_pairs(const int16_t* before, const int16_t* row, int32_t* pair) {
        const auto own = hn::Load(kShortTag, row);
        const auto first = kHasBefore ? hn::Load(kShortTag, before) : own;
        const auto second = kHasBefore ? own : hn::Zero(kShortTag);
        hn::Store(hn::BitCast(kIntTag, hn::InterleaveLower(kShortTag, first, second)), kIntTag, pair);
        hn::Store(hn::BitCast(kIntTag, hn::InterleaveUpper(kShortTag, first, second)), kIntTag, pair + kLanes);
    }

    static HWY_INLINE IntVec total(const int32_t* correlations, IntVec sum, IntVec rest) {
        return hn::Add(hn::RearrangeToOddPlusEven(sum, rest), hn::Load(kIntTag, correlations));
    }

    // Of the vector itself.
    IntVec largest_correlations() const {
        IntVec largest = hn::Zero(kIntTag);
        for (size_t first = 0; first < n_padded_; first += kLanes) {
            const IntVec p = hn::Load(kIntTag, correlations_ + first);
            largest = hn::Max(largest, numbering_.numbered(p, numbering_.of(first)));
        }
        return largest;
    }

    // to[kGroup] = unit * levels
    template <class Shorts>
    static HWY_INLINE void store_products(Shorts levels, GroupVec unit, float* to) {
        const auto store = [unit](auto part, float* at) HWY_ATTR {
            hn::Store(hn::Mul(unit, hn::ConvertTo(kGroupTag, hn::PromoteTo(kGroupIntTag, part))), kGroupTag, at);
        };
        if constexpr (kGroupLanes == kGroup) {
            store(levels, to);
        } else {
            const hn::Rebind<int16_t, GroupTag> half_tag;
            store(hn::LowerHalf(half_tag, levels), to);
            store(hn::UpperHalf(half_tag, levels), to + kGroupLanes);
        }
    }

    // The atom's correlation as add_row() found it, and in products_ its products with the support's first n atoms:
    // both from the support's rows, which are nearer than its own.
    HWY_INLINE float look_up(size_t atom, size_t n) {
        const hn::FixedTag<int32_t, kGroup / 2> pair_tag;
        const hn::Repartition<int64_t, decltype(pair_tag)> double_pair_tag;
        const hn::Repartition<int16_t, decltype(pair_tag)> short_tag;
        const GroupVec unit = hn::Set(kGroupTag, gram_.unit());
        const int32_t* row = rows_.get() + atom;
        auto sum = hn::Zero(pair_tag), rest = hn::Zero(pair_tag);
        for (size_t v = 0; v < n; v += kGroup, row += kGroup / 2 * n_padded_) {
            const auto two = [pair_tag, double_pair_tag](int32_t first, int32_t second) HWY_ATTR {
                return hn::BitCast(double_pair_tag,
                                   hn::InterleaveLower(pair_tag, hn::Set(pair_tag, first), hn::Set(pair_tag, second)));
            };
            const auto levels =
                hn::BitCast(short_tag, hn::InterleaveLower(double_pair_tag, two(row[0], row[n_padded_]),
                                                           two(row[2 * n_padded_], row[3 * n_padded_])));
            const auto factors = hn::BitCast(short_tag, hn::Load(pair_tag, levels_ + v / 2));
            sum = hn::ReorderWidenMulAccumulate(pair_tag, levels, factors, sum, rest);
            store_products(levels, unit, products_ + v);
        }
        sum = hn::SumOfLanes(pair_tag, hn::RearrangeToOddPlusEven(sum, rest));
        return correlation_unit_ * static_cast<float>(int64_t{correlations_[atom]} + hn::GetLane(sum));
    }

    // Coefficients of the atoms as they are, by a step of iterative refinement: the inverse is of rounded ones. Without
    // it where that is close enough. False: one step is not enough, nothing is written.
    bool finish() const {
        Pursuit& pursuit = *pursuit_;
        const size_t count = pursuit.count(), n = gram_stride(count);
        float* coefficient = pursuit.coefficients();
        std::copy_n(coefficient_, count, coefficient);
        if (!refines_ && smallest_pivot_energy_ > kGramFitPivot && pursuit.remaining() > kGramFitRemaining) {
            pursuit.finish(pursuit.remaining());
            return true;
        }
        float remaining = pursuit.subtract(coefficient);
        float gradient[kMaxSparsity] = {};
        for (size_t k = 0; k < count; ++k) {
            gradient[k] = pursuit.correlation(k);
            if (!(std::abs(gradient[k]) < kGramGradient)) {
                return false;
            }
        }
        HWY_ALIGN float step[kMaxSparsity];
        for (size_t v = 0; v < n; v += kGroupLanes) {
            hn::Store(solved(gradient, n, v), kGroupTag, step + v);
        }
        for (size_t k = 0; k < count; ++k) {
            coefficient[k] += step[k];
        }
        const float gain = std::inner_product(step, step + count, gradient, 0.0F);
        remaining = gain < kGramGain * remaining ? remaining - gain : pursuit.subtract(step);
        const float delta = pursuit.relative_error();
        if (count < sparsity_ && remaining > delta * delta) {
            return false;
        }
        pursuit.finish(remaining);
        return true;
    }

    const size_t sparsity_, stride_, n_padded_;
    const Numbering numbering_;
    const bool short_products_, refines_;
    const Gram& gram_;
    const float correlation_unit_;               // what 1 is worth in correlations
    const float levels_per_coefficient_;         // so that their products with those of G are correlations
    Ints rows_;                                  // [pairs(stride), n_padded]: the support's rows of G, in pairs
    Floats inverse_;                             // of the support's part of G [stride, stride], zero beyond it
    HWY_ALIGN float coefficient_[kMaxSparsity];  // of the unit vector
    HWY_ALIGN int32_t levels_[pairs(kMaxSparsity)];
    HWY_ALIGN int32_t support_[kMaxSparsity];  // -1 where there is none yet
    HWY_ALIGN float products_[kMaxSparsity];
    HWY_ALIGN float projection_[kMaxSparsity];
    Pursuit* pursuit_ = nullptr;
    const int32_t* correlations_ = nullptr;
    float smallest_pivot_energy_ = 1.0F;
};

void encode_gram(const OmpJob& job, const PackedAtoms& packed) {
    const Gram gram(job, packed);
    GramPursuit gram_pursuit(job, packed, gram);
    const Ints correlations = allocate<int32_t>(kRows * packed.n_padded);
    std::vector<Pursuit> pursuits(kRows, Pursuit(job));
    std::vector<size_t> for_direct;
    for (size_t first = 0; first < job.n; first += kRows) {
        const size_t n_rows = std::min(kRows, job.n - first);
        size_t active[kRows];
        const int32_t* rows[kRows];
        size_t n_active = 0;
        for (size_t r = 0; r < n_rows; ++r) {
            if (pursuits[r].start(first + r)) {
                active[n_active] = r;
                rows[n_active++] = pursuits[r].rounded();
            } else {
                pursuits[r].finish(0.0F);
            }
        }
        if (n_active > 0) {
            multiply(rows, n_active, packed, correlations.get());
        }
        for (size_t a = 0; a < n_active; ++a) {
            if (!gram_pursuit.run(correlations.get() + a * packed.n_padded, pursuits[active[a]])) {
                for_direct.push_back(first + active[a]);
            }
        }
    }
    encode_direct(job, packed, for_direct);
}

// Multiply-adds per atom of the dictionary. What the Gram variant does for a choice, and for each atom of the support
// at each choice, takes as long as the constants say.
bool gram_pays(const OmpJob& job) {
    constexpr double kChoiceCost = 7.0, kAtomCost = 1.5, kBuildCost = 0.65;
    const double n = static_cast<double>(job.n), dim = static_cast<double>(job.dim);
    const double s = static_cast<double>(job.options.sparsity), n_atoms = static_cast<double>(job.n_atoms);
    const double pursuit = dim + kChoiceCost * s + kAtomCost * s * s / 2;
    return kBuildCost * n_atoms * dim + n * pursuit < n * s * dim;
}

void encode(const OmpJob& job) {
    const PackedAtoms packed(job.atoms, job.n_atoms, job.dim, job.options.short_products);
    if (gram_pays(job)) {
        encode_gram(job, packed);
    } else {
        std::vector<size_t> all(job.n);
        std::iota(all.begin(), all.end(), size_t{0});
        encode_direct(job, packed, all);
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {

HWY_EXPORT(encode);

void omp_encode(const float* atoms, size_t n_atoms, size_t dim, const float* x, size_t n, const OmpOptions& options,
                uint16_t* index, float* coefficient, uint8_t* count, float* residual_energy, float* support_gram) {
    if (n_atoms == 0 || n_atoms > kMaxAtoms || dim == 0) {
        throw Error("a dictionary needs 1 to " + std::to_string(kMaxAtoms) + " atoms of at least one element; got " +
                    std::to_string(n_atoms) + " atoms of " + std::to_string(dim));
    }
    if (options.sparsity == 0 || options.sparsity > kMaxSparsity) {
        throw Error("sparsity " + std::to_string(options.sparsity) + " is out of range; choose 1 to " +
                    std::to_string(kMaxSparsity));
    }
    if (n == 0) {
        return;
    }
    HWY_DYNAMIC_DISPATCH(encode)
    ({atoms, n_atoms, dim, x, n, options, index, coefficient, count, residual_energy, support_gram});
}

}  // namespace kvcodec
#endif  // HWY_ONCE
