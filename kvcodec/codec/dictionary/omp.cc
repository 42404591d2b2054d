// Orthogonal matching pursuit, vectorised over atoms: the atoms are packed once a call into blocks [dim, block], so any
// number of vectors, even one, uses full SIMD width.
//
// Both variants below build, atom by atom, an orthonormal basis q_1..q_s of the support (D_S = Q L^T, L the Cholesky
// factor of the support's Gram matrix), so that a new atom never changes earlier projections a_k = q_k . x:
//   direct  keeps the residual and multiplies it with all atoms for each choice: N dim MACs an atom.
//   Gram    keeps p = D r and b_k = D q_k instead, from G = D D^T built once a call: N k MACs for the k-th atom.
// The coefficients follow at the end from L^T c = a.
#include "kvcodec/codec/dictionary/omp.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kvcodec/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/codec/dictionary/omp.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep

#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>

#include "kvcodec/codec/dictionary/vector-inl.h"

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
    float* factor;
};

// Correlations of a unit vector below this are rounding noise: they could lower the residual by 1e-12 at most.
constexpr float kNegligibleCorrelation = 1e-6F;
// Squared distance of a new atom from the span of the support below which it counts as dependent.
constexpr float kMinPivot = 1e-5F;

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
using Floats = hwy::AlignedFreeUniquePtr<float[]>;

constexpr Tag kTag;
constexpr size_t kLanes = hn::MaxLanes(kTag);
// Atoms in one packed block: two vectors, so that each broadcast element of a row serves two multiply-adds.
constexpr size_t kBlock = 2 * kLanes;
// Rows multiplied together; with two vectors each, the sums fill 16 of 32 or 12 of 16 registers.
constexpr size_t kRows = (HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM) ? 8 : 6;
// Atoms per step of the Gram variant: enough independent sums to hide the latency of multiply-adds.
constexpr size_t kChunk = 4 * kLanes;

Floats allocate(size_t n) {
    return hwy::AllocateAligned<float>(n);
}

// to[c, kBlock][r] = from[r, stride][c] for r, c < 4.
HWY_INLINE void transpose_4x4(const float* from, size_t stride, float* to) {
#if HWY_TARGET == HWY_SCALAR
    for (size_t c = 0; c < 4; ++c) {
        for (size_t r = 0; r < 4; ++r) {
            to[c * kBlock + r] = from[r * stride + c];
        }
    }
#else
    const hn::FixedTag<float, 4> four;
    const auto row0 = hn::LoadU(four, from), row1 = hn::LoadU(four, from + stride);
    const auto row2 = hn::LoadU(four, from + 2 * stride), row3 = hn::LoadU(four, from + 3 * stride);
    const auto low01 = hn::InterleaveLower(four, row0, row1), low23 = hn::InterleaveLower(four, row2, row3);
    const auto high01 = hn::InterleaveUpper(four, row0, row1), high23 = hn::InterleaveUpper(four, row2, row3);
    hn::StoreU(hn::ConcatLowerLower(four, low23, low01), four, to);
    hn::StoreU(hn::ConcatUpperUpper(four, low23, low01), four, to + kBlock);
    hn::StoreU(hn::ConcatLowerLower(four, high23, high01), four, to + 2 * kBlock);
    hn::StoreU(hn::ConcatUpperUpper(four, high23, high01), four, to + 3 * kBlock);
#endif
}

// The atoms, transposed block by block: [n_padded / kBlock, dim, kBlock]. Padding atoms are zero and never chosen.
struct PackedAtoms {
    PackedAtoms(const float* atoms, size_t n_atoms, size_t dim)
        : n_padded((n_atoms + kChunk - 1) / kChunk * kChunk), data(allocate(n_padded * dim)) {
        for (size_t first = 0; first < n_padded; first += kBlock) {
            float* block = data.get() + first * dim;
            const float* rows = atoms + std::min(first, n_atoms) * dim;
            const size_t n = std::min(kBlock, n_atoms - std::min(first, n_atoms));
            if (n < kBlock) {
                std::fill(block, block + dim * kBlock, 0.0F);
            }
            for (size_t j = 0; j < n / 4 * 4; j += 4) {
                for (size_t i = 0; i < dim / 4 * 4; i += 4) {
                    transpose_4x4(rows + j * dim + i, dim, block + i * kBlock + j);
                }
            }
            for (size_t j = 0; j < n; ++j) {
                for (size_t i = j < n / 4 * 4 ? dim / 4 * 4 : 0; i < dim; ++i) {
                    block[i * kBlock + j] = rows[j * dim + i];
                }
            }
        }
    }

    size_t n_padded;
    Floats data;
};

// Products of R rows with the atoms of one block.
template <size_t R>
HWY_INLINE void multiply_block(const float* const* rows, size_t dim, const float* block, Vec (&sum)[R][2]) {
    for (size_t r = 0; r < R; ++r) {
        sum[r][0] = sum[r][1] = hn::Zero(kTag);
    }
    for (size_t i = 0; i < dim; ++i) {
        const Vec atoms0 = hn::Load(kTag, block + i * kBlock);
        const Vec atoms1 = hn::Load(kTag, block + i * kBlock + kLanes);
        for (size_t r = 0; r < R; ++r) {
            const Vec x = hn::Set(kTag, rows[r][i]);
            sum[r][0] = hn::MulAdd(x, atoms0, sum[r][0]);
            sum[r][1] = hn::MulAdd(x, atoms1, sum[r][1]);
        }
    }
}

// out[n_rows, n_padded] = rows . atoms, for n_rows <= R.
template <size_t R = kRows>
void multiply(const float* const* rows, size_t n_rows, size_t dim, const PackedAtoms& packed, float* out) {
    if constexpr (R > 1) {
        if (n_rows < R) {
            return multiply<R - 1>(rows, n_rows, dim, packed, out);
        }
    }
    for (size_t first = 0; first < packed.n_padded; first += kBlock) {
        Vec sum[R][2];
        multiply_block<R>(rows, dim, packed.data.get() + first * dim, sum);
        for (size_t r = 0; r < R; ++r) {
            hn::Store(sum[r][0], kTag, out + r * packed.n_padded + first);
            hn::Store(sum[r][1], kTag, out + r * packed.n_padded + first + kLanes);
        }
    }
}

struct Choice {
    float correlation;  ///< absolute
    size_t atom;
};

// The largest |correlation| seen in each SIMD lane, and its atom (exact in a float: there are at most 65536).
class RunningChoice {
  public:
    HWY_INLINE RunningChoice() : best_(hn::Zero(kTag)), atom_(hn::Zero(kTag)) {}

    HWY_INLINE void offer(Vec correlation, Vec atom) {
        const Vec magnitude = hn::Abs(correlation);
        const auto better = hn::Gt(magnitude, best_);
        best_ = hn::IfThenElse(better, magnitude, best_);
        atom_ = hn::IfThenElse(better, atom, atom_);
    }

    HWY_INLINE void merge(const RunningChoice& other) {
        const auto better = hn::Gt(other.best_, best_);
        best_ = hn::IfThenElse(better, other.best_, best_);
        atom_ = hn::IfThenElse(better, other.atom_, atom_);
    }

    // Of equal correlations the first atom wins.
    Choice reduce() const {
        const Vec best = hn::MaxOfLanes(kTag, best_);
        const Vec candidates = hn::IfThenElse(hn::Eq(best_, best), atom_, hn::Set(kTag, 1e9F));
        return {hn::GetLane(best), static_cast<size_t>(hn::GetLane(hn::MinOfLanes(kTag, candidates)))};
    }

  private:
    Vec best_;
    Vec atom_;
};

// choice[r] = the atom that correlates most with row r, for n_rows <= R.
template <size_t R = kRows>
void choose(const float* const* rows, size_t n_rows, size_t dim, const PackedAtoms& packed, Choice* choice) {
    if constexpr (R > 1) {
        if (n_rows < R) {
            return choose<R - 1>(rows, n_rows, dim, packed, choice);
        }
    }
    RunningChoice running[R];
    Vec atom0 = hn::Iota(kTag, 0.0F), atom1 = hn::Iota(kTag, static_cast<float>(kLanes));
    for (size_t first = 0; first < packed.n_padded; first += kBlock) {
        Vec sum[R][2];
        multiply_block<R>(rows, dim, packed.data.get() + first * dim, sum);
        for (size_t r = 0; r < R; ++r) {
            running[r].offer(sum[r][0], atom0);
            running[r].offer(sum[r][1], atom1);
        }
        atom0 = hn::Add(atom0, hn::Set(kTag, static_cast<float>(kBlock)));
        atom1 = hn::Add(atom1, hn::Set(kTag, static_cast<float>(kBlock)));
    }
    for (size_t r = 0; r < R; ++r) {
        choice[r] = running[r].reduce();
    }
}

// One vector on its way: what both variants share.
class Pursuit {
  public:
    Pursuit(const OmpJob& job) : job_(job), unit_(job.dim), factor_(job.options.sparsity * job.options.sparsity) {}

    // Takes row `row` of x, scaled to unit norm so that no threshold depends on its size. False: code it as zero.
    bool start(size_t row) {
        const float* x = job_.x + row * job_.dim;
        double energy = 0.0;
        for (size_t i = 0; i < job_.dim; ++i) {
            energy += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
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

    // Adds an atom at distance `pivot` from the span of the support; row count() of the factor is already filled.
    void add(size_t atom, float pivot, float projection) {
        factor(count_)[count_] = pivot;
        support_[count_] = static_cast<uint16_t>(atom);
        projection_[count_] = projection;
        ++count_;
    }

    // Writes the code of this row; an unstarted one is zero.
    void finish() {
        const size_t s = job_.options.sparsity;
        uint16_t* index = job_.index + row_ * s;
        float* coefficient = job_.coefficient + row_ * s;
        std::fill(std::copy(support_, support_ + count_, index), index + s, uint16_t{0});
        std::fill(coefficient + count_, coefficient + s, 0.0F);
        for (size_t k = count_; k-- > 0;) {
            float sum = projection_[k];
            for (size_t j = k + 1; j < count_; ++j) {
                sum -= factor(j)[k] * coefficient[j];
            }
            coefficient[k] = sum / factor(k)[k];
        }
        job_.count[row_] = static_cast<uint8_t>(count_);
        for (size_t k = 0; k < count_ && job_.factor != nullptr; ++k) {
            std::copy_n(factor(k), k + 1, job_.factor + (row_ * s + k) * s);
        }
        double energy = norm_ * norm_;
        if (count_ > 0 && job_.residual_energy != nullptr) {
            for (size_t k = 0; k < count_; ++k) {
                add_multiple(-coefficient[k], job_.atoms + support_[k] * job_.dim, job_.dim, unit_.data());
            }
            energy *= static_cast<double>(dot(unit_.data(), unit_.data(), job_.dim));
        }
        for (size_t k = 0; k < count_; ++k) {
            coefficient[k] = static_cast<float>(coefficient[k] * norm_);
        }
        if (job_.residual_energy != nullptr) {
            job_.residual_energy[row_] = static_cast<float>(energy);
        }
    }

    const float* unit() const { return unit_.data(); }
    size_t count() const { return count_; }
    float* factor(size_t k) { return factor_.data() + k * job_.options.sparsity; }
    /// ||residual||^2 / ||x||^2
    float remaining() const { return remaining_; }
    void set_remaining(float remaining) { remaining_ = remaining; }

  private:
    const OmpJob& job_;
    size_t row_ = 0, count_ = 0;
    double norm_ = 0.0;
    float remaining_ = 1.0F;
    std::vector<float> unit_;    // [dim]
    std::vector<float> factor_;  // L [sparsity, sparsity], lower triangle
    uint16_t support_[kMaxSparsity] = {};
    float projection_[kMaxSparsity] = {};
};

// ---- direct --------------------------------------------------------------------------------------------------------

struct DirectPursuit {
    DirectPursuit(const OmpJob& job) : pursuit(job), residual(job.dim), basis(job.options.sparsity * job.dim) {}

    Pursuit pursuit;
    std::vector<float> residual;  // [dim]
    std::vector<float> basis;     // q [sparsity, dim]
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
    float* factor = pursuit.factor(k);
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
    const float projection = dot(q, residual, dim);
    add_multiple(-projection, q, dim, residual);
    pursuit.add(choice.atom, pivot, projection);
    pursuit.set_remaining(dot(residual, residual, dim));
    return pursuit.wants_more();
}

void encode_direct(const OmpJob& job, const PackedAtoms& packed) {
    std::vector<DirectPursuit> states(std::min(kRows, job.n), DirectPursuit(job));
    for (size_t first = 0; first < job.n; first += states.size()) {
        const size_t n_rows = std::min(states.size(), job.n - first);
        DirectPursuit* active[kRows];
        size_t n_active = 0;
        for (size_t r = 0; r < n_rows; ++r) {
            if (states[r].pursuit.start(first + r)) {
                std::copy_n(states[r].pursuit.unit(), job.dim, states[r].residual.data());
                active[n_active++] = &states[r];
            }
        }
        while (n_active > 0) {
            const float* rows[kRows];
            Choice choice[kRows];
            for (size_t a = 0; a < n_active; ++a) {
                rows[a] = active[a]->residual.data();
            }
            choose(rows, n_active, job.dim, packed, choice);
            size_t n_left = 0;
            for (size_t a = 0; a < n_active; ++a) {
                if (extend(job, choice[a], *active[a])) {
                    active[n_left++] = active[a];
                }
            }
            n_active = n_left;
        }
        for (size_t r = 0; r < n_rows; ++r) {
            states[r].pursuit.finish();
        }
    }
}

// ---- Gram ----------------------------------------------------------------------------------------------------------

Floats gram_matrix(const OmpJob& job, const PackedAtoms& packed) {
    Floats gram = allocate(job.n_atoms * packed.n_padded);
    for (size_t first = 0; first < job.n_atoms; first += kRows) {
        const size_t n_rows = std::min(kRows, job.n_atoms - first);
        const float* rows[kRows];
        for (size_t r = 0; r < n_rows; ++r) {
            rows[r] = job.atoms + (first + r) * job.dim;
        }
        multiply(rows, n_rows, job.dim, packed, gram.get() + first * packed.n_padded);
    }
    return gram;
}

Choice reduce(RunningChoice (&running)[4]) {
    running[0].merge(running[1]);
    running[2].merge(running[3]);
    running[0].merge(running[2]);
    return running[0].reduce();
}

// The atom that correlates most, of p[n_padded].
Choice choose(const float* p, size_t n_padded) {
    RunningChoice running[4];
    Vec atom = hn::Iota(kTag, 0.0F);
    for (size_t first = 0; first < n_padded; first += kChunk) {
        for (size_t v = 0; v < 4; ++v) {
            running[v].offer(hn::Load(kTag, p + first + v * kLanes), atom);
            atom = hn::Add(atom, hn::Set(kTag, static_cast<float>(kLanes)));
        }
    }
    return reduce(running);
}

// b_k = (gram_row - sum_i factor[i] b_i) / pivot; p -= projection b_k; the next choice.
// bases: [n_padded / kChunk, sparsity, kChunk], so that one chunk of all b_i is contiguous.
Choice project(const float* gram_row, const float* factor, size_t k, float pivot, float projection, size_t n_padded,
               size_t sparsity, float* bases, float* p) {
    const Vec inverse_pivot = hn::Set(kTag, 1.0F / pivot), step = hn::Set(kTag, projection);
    RunningChoice running[4];
    Vec atom = hn::Iota(kTag, 0.0F);
    for (size_t first = 0; first < n_padded; first += kChunk) {
        float* chunk = bases + first * sparsity;
        Vec b[4];
        for (size_t v = 0; v < 4; ++v) {
            b[v] = hn::Load(kTag, gram_row + first + v * kLanes);
        }
        for (size_t i = 0; i < k; ++i) {
            const Vec f = hn::Set(kTag, factor[i]);
            for (size_t v = 0; v < 4; ++v) {
                b[v] = hn::NegMulAdd(f, hn::Load(kTag, chunk + i * kChunk + v * kLanes), b[v]);
            }
        }
        for (size_t v = 0; v < 4; ++v) {
            b[v] = hn::Mul(b[v], inverse_pivot);
            hn::Store(b[v], kTag, chunk + k * kChunk + v * kLanes);
            float* q = p + first + v * kLanes;
            const Vec correlation = hn::NegMulAdd(step, b[v], hn::Load(kTag, q));
            hn::Store(correlation, kTag, q);
            running[v].offer(correlation, atom);
            atom = hn::Add(atom, hn::Set(kTag, static_cast<float>(kLanes)));
        }
    }
    return reduce(running);
}

// Runs one started pursuit to its end. p: D x on entry, overwritten.
void pursue(const OmpJob& job, const float* gram, size_t n_padded, float* bases, float* p, Pursuit& pursuit) {
    Choice choice = choose(p, n_padded);
    while (pursuit.accepts(choice)) {
        const float* gram_row = gram + choice.atom * n_padded;
        const float* chunk = bases + choice.atom / kChunk * kChunk * job.options.sparsity + choice.atom % kChunk;
        const size_t k = pursuit.count();
        float* factor = pursuit.factor(k);
        float pivot_energy = gram_row[choice.atom];
        for (size_t i = 0; i < k; ++i) {
            factor[i] = chunk[i * kChunk];
            pivot_energy -= factor[i] * factor[i];
        }
        if (pivot_energy < kMinPivot) {
            return;
        }
        const float pivot = std::sqrt(pivot_energy);
        const float projection = p[choice.atom] / pivot;
        pursuit.add(choice.atom, pivot, projection);
        pursuit.set_remaining(pursuit.remaining() - projection * projection);
        if (!pursuit.wants_more()) {
            return;
        }
        choice = project(gram_row, factor, k, pivot, projection, n_padded, job.options.sparsity, bases, p);
    }
}

void encode_gram(const OmpJob& job, const PackedAtoms& packed) {
    const Floats gram = gram_matrix(job, packed);
    const Floats bases = allocate(packed.n_padded * job.options.sparsity);
    const Floats p = allocate(kRows * packed.n_padded);
    std::vector<Pursuit> pursuits(kRows, Pursuit(job));
    for (size_t first = 0; first < job.n; first += kRows) {
        const size_t n_rows = std::min(kRows, job.n - first);
        Pursuit* active[kRows];
        const float* rows[kRows];
        size_t n_active = 0;
        for (size_t r = 0; r < n_rows; ++r) {
            if (pursuits[r].start(first + r)) {
                active[n_active] = &pursuits[r];
                rows[n_active++] = pursuits[r].unit();
            }
        }
        if (n_active > 0) {
            multiply(rows, n_active, job.dim, packed, p.get());
        }
        for (size_t a = 0; a < n_active; ++a) {
            pursue(job, gram.get(), packed.n_padded, bases.get(), p.get() + a * packed.n_padded, *active[a]);
        }
        for (size_t r = 0; r < n_rows; ++r) {
            pursuits[r].finish();
        }
    }
}

// Multiply-adds per atom of the dictionary; one of the Gram variant's own, bound by memory, takes as long as kGramCost.
bool gram_pays(const OmpJob& job) {
    constexpr double kGramCost = 3.0;
    const double n = static_cast<double>(job.n), dim = static_cast<double>(job.dim);
    const double s = static_cast<double>(job.options.sparsity), n_atoms = static_cast<double>(job.n_atoms);
    return n_atoms * dim + n * (dim + kGramCost * s * (s + 1) / 2) < n * s * dim;
}

void encode(const OmpJob& job) {
    const PackedAtoms packed(job.atoms, job.n_atoms, job.dim);
    if (gram_pays(job)) {
        encode_gram(job, packed);
    } else {
        encode_direct(job, packed);
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
                uint16_t* index, float* coefficient, uint8_t* count, float* residual_energy, float* factor) {
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
    ({atoms, n_atoms, dim, x, n, options, index, coefficient, count, residual_energy, factor});
}

}  // namespace kvcodec
#endif  // HWY_ONCE
