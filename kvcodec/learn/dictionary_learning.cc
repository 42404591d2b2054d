#include "kvcodec/learn/dictionary_learning.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>
#include <string>
#include <utility>

#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/learn/dictionary_learning.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep

#include <hwy/highway.h>

#include "kvcodec/vector-inl.h"

#ifndef KVCODEC_LEARN_DICTIONARY_LEARNING_TYPES
#define KVCODEC_LEARN_DICTIONARY_LEARNING_TYPES
namespace kvcodec {
namespace {

/// Rows and their sparse codes.
struct CodedRows {
    std::vector<float> x;  // [n, dim]
    size_t n = 0;
    std::vector<uint16_t> index;     // [n, sparsity]
    std::vector<float> coefficient;  // [n, sparsity]
    std::vector<uint8_t> count;      // [n]
    std::vector<float> residual;     // x - D y [n, dim]
};

struct Dictionary {
    size_t n_atoms, dim;
    std::vector<float> atoms;  // [n_atoms, dim]

    float* atom(size_t j) { return atoms.data() + j * dim; }
    const float* atom(size_t j) const { return atoms.data() + j * dim; }
};

// Running moments of the gradient.
struct AdamState {
    std::vector<float> first, second;  // [n_atoms, dim]
    size_t steps = 0;
};

}  // namespace
}  // namespace kvcodec
#endif

HWY_BEFORE_NAMESPACE();
namespace kvcodec {
namespace HWY_NAMESPACE {
namespace {

// rows.residual = x - D y
void compute_residuals(const Dictionary& dictionary, size_t sparsity, CodedRows& rows) {
    const size_t dim = dictionary.dim;
    rows.residual = rows.x;
    for (size_t i = 0; i < rows.n; ++i) {
        for (size_t k = i * sparsity; k < i * sparsity + rows.count[i]; ++k) {
            add_multiple(-rows.coefficient[k], dictionary.atom(rows.index[k]), dim, rows.residual.data() + i * dim);
        }
    }
}

// Each atom in turn becomes the best direction for the rows that use it, their coefficients follow; residuals are kept
// up to date. users[first[j] .. first[j+1]): the nonzeros (row * sparsity + k) of atom j.
void update_atoms(const std::vector<uint32_t>& first, const std::vector<uint32_t>& users, size_t sparsity,
                  Dictionary& dictionary, CodedRows& rows) {
    const size_t dim = dictionary.dim;
    std::vector<float> updated(dim);
    for (size_t j = 0; j < dictionary.n_atoms; ++j) {
        float* atom = dictionary.atom(j);
        // sum of c (r + c d) over the rows with residual r and coefficient c
        std::fill(updated.begin(), updated.end(), 0.0F);
        float energy = 0.0F;
        for (uint32_t u = first[j]; u < first[j + 1]; ++u) {
            const float c = rows.coefficient[users[u]];
            add_multiple(c, rows.residual.data() + users[u] / sparsity * dim, dim, updated.data());
            energy += c * c;
        }
        add_multiple(energy, atom, dim, updated.data());
        const float norm = std::sqrt(dot(updated.data(), updated.data(), dim));
        if (!(norm > 0.0F) || !std::isfinite(norm)) {
            continue;
        }
        for (float& v : updated) {
            v /= norm;
        }
        const float cosine = dot(atom, updated.data(), dim);
        for (uint32_t u = first[j]; u < first[j + 1]; ++u) {
            float* residual = rows.residual.data() + users[u] / sparsity * dim;
            const float before = rows.coefficient[users[u]];
            const float after = dot(residual, updated.data(), dim) + before * cosine;
            add_multiple(before, atom, dim, residual);
            add_multiple(-after, updated.data(), dim, residual);
            rows.coefficient[users[u]] = after;
        }
        std::copy(updated.begin(), updated.end(), atom);
    }
}

// One step (Kingma and Ba 2015) down the gradient's part across each atom.
void adam_step(const std::vector<float>& gradient, float rate, AdamState& state, Dictionary& dictionary) {
    constexpr float kDecay1 = 0.9F, kDecay2 = 0.999F, kEpsilon = 1e-8F;
    const size_t dim = dictionary.dim;
    ++state.steps;
    const float unbias1 = 1.0F / (1.0F - std::pow(kDecay1, static_cast<float>(state.steps)));
    const float unbias2 = 1.0F / (1.0F - std::pow(kDecay2, static_cast<float>(state.steps)));
    for (size_t j = 0; j < dictionary.n_atoms; ++j) {
        float* HWY_RESTRICT atom = dictionary.atom(j);
        float* HWY_RESTRICT first = state.first.data() + j * dim;
        float* HWY_RESTRICT second = state.second.data() + j * dim;
        const float* HWY_RESTRICT slope = gradient.data() + j * dim;
        const float along = dot(slope, atom, dim);
        for (size_t i = 0; i < dim; ++i) {
            const float tangent = slope[i] - along * atom[i];
            first[i] = kDecay1 * first[i] + (1.0F - kDecay1) * tangent;
            second[i] = kDecay2 * second[i] + (1.0F - kDecay2) * tangent * tangent;
            atom[i] -= rate * first[i] * unbias1 / (std::sqrt(second[i] * unbias2) + kEpsilon);
        }
        const float norm = std::sqrt(dot(atom, atom, dim));
        for (size_t i = 0; i < dim; ++i) {
            atom[i] /= norm;
        }
    }
}

// gradient [n_atoms, dim] of sum ||x - D y||^2 / 2, codes being fixed.
void compute_gradient(const CodedRows& rows, size_t sparsity, size_t dim, std::vector<float>& gradient) {
    std::fill(gradient.begin(), gradient.end(), 0.0F);
    for (size_t i = 0; i < rows.n; ++i) {
        for (size_t k = i * sparsity; k < i * sparsity + rows.count[i]; ++k) {
            add_multiple(-rows.coefficient[k], rows.residual.data() + i * dim, dim,
                         gradient.data() + rows.index[k] * dim);
        }
    }
}

// The largest |cosine| between `candidate` and the first n atoms.
float largest_cosine(const Dictionary& dictionary, size_t n, const float* candidate) {
    float largest = 0.0F;
    for (size_t j = 0; j < n; ++j) {
        largest = std::max(largest, std::abs(dot(dictionary.atom(j), candidate, dictionary.dim)));
    }
    return largest;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvcodec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {
namespace {

HWY_EXPORT(compute_residuals);
HWY_EXPORT(update_atoms);
HWY_EXPORT(compute_gradient);
HWY_EXPORT(adam_step);
HWY_EXPORT(largest_cosine);

// Atoms closer than this serve the same rows.
constexpr float kDuplicateCosine = 0.99F;
// An atom that fewer rows use is not worth its place.
constexpr uint32_t kMinUsers = 3;
// One run of rows in so many is held out.
constexpr size_t kHeldOutShare = 16;
constexpr size_t kHeldOutRun = 256;

double energy_of(const float* x, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    return sum;
}

// Unit-norm copy of row i.
std::vector<float> direction(const CodedRows& rows, size_t i, size_t dim) {
    std::vector<float> x(rows.x.begin() + i * dim, rows.x.begin() + (i + 1) * dim);
    const double scale = 1.0 / std::sqrt(energy_of(x.data(), dim));
    for (float& v : x) {
        v = static_cast<float>(v * scale);
    }
    return x;
}

// The Lloyd-Max quantiser of `ratios`.
std::array<float, LearnedDictionary::kLevels> lloyd_max_levels(std::vector<float> ratios) {
    constexpr size_t kLevels = LearnedDictionary::kLevels;
    constexpr int kIterations = 50;
    std::array<float, kLevels> levels;
    for (size_t level = 0; level < kLevels; ++level) {
        levels[level] = static_cast<float>(level + 1) / kLevels;
    }
    std::sort(ratios.begin(), ratios.end());
    for (int iteration = 0; iteration < kIterations; ++iteration) {
        auto begin = ratios.begin();
        for (size_t level = 0; level < kLevels; ++level) {
            const auto end = level + 1 == kLevels
                                 ? ratios.end()
                                 : std::lower_bound(begin, ratios.end(), (levels[level] + levels[level + 1]) / 2);
            if (begin != end) {  // a level without members stays where it is
                levels[level] = static_cast<float>(std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin));
            }
            begin = end;
        }
    }
    return levels;
}

class Learner {
  public:
    Learner(std::span<const float> rows, size_t dim, const LearnOptions& options)
        : options_(options), dictionary_{options.n_atoms, dim, std::vector<float>(options.n_atoms * dim)} {
        split(rows);
        if (train_.n < options.n_atoms || heldout_.n == 0) {
            throw Error("a dictionary of " + std::to_string(options.n_atoms) + " atoms needs at least " +
                        std::to_string(std::max(options.n_atoms, kHeldOutShare)) +
                        " finite nonzero training rows, there are " + std::to_string(train_.n) +
                        "; give more text or choose fewer atoms");
        }
    }

    LearnedDictionary learn() {
        const bool ksvd = options_.learner == DictionaryLearner::kKsvd;
        ksvd ? begin_with_rows() : begin_with_random_directions();
        keep_if_best();
        for (size_t sweep = 0; sweep < options_.sweeps && !stopped(); ++sweep) {
            ksvd ? sweep_ksvd() : sweep_gradient(sweep);
            const float error = keep_if_best();
            if (options_.progress) {
                options_.progress(sweep + 1, error);
            }
        }
        return std::move(best_);
    }

  private:
    bool stopped() const { return options_.stop != nullptr && options_.stop->load(); }

    void split(std::span<const float> rows) {
        const size_t dim = dictionary_.dim, n = rows.size() / dim;
        const size_t run = std::clamp<size_t>(n / (8 * kHeldOutShare), 1, kHeldOutRun);
        for (size_t i = 0; i < n; ++i) {
            const float* row = rows.data() + i * dim;
            const double energy = energy_of(row, dim);
            if (std::isfinite(energy) && energy > 0.0) {
                CodedRows& part = i / run % kHeldOutShare == kHeldOutShare - 1 ? heldout_ : train_;
                part.x.insert(part.x.end(), row, row + dim);
                ++part.n;
            }
        }
    }

    bool is_duplicate(const std::vector<float>& candidate, size_t n_atoms) const {
        return HWY_DYNAMIC_DISPATCH(largest_cosine)(dictionary_, n_atoms, candidate.data()) > kDuplicateCosine;
    }

    std::vector<float> random_direction() {
        std::normal_distribution<float> normal;
        std::vector<float> atom(dictionary_.dim);
        std::generate(atom.begin(), atom.end(), [&] { return normal(random_); });
        const float norm = static_cast<float>(std::sqrt(energy_of(atom.data(), dictionary_.dim)));
        std::transform(atom.begin(), atom.end(), atom.begin(), [norm](float v) { return v / norm; });
        return atom;
    }

    std::vector<size_t> shuffled_rows() {
        std::vector<size_t> order(train_.n);
        std::iota(order.begin(), order.end(), size_t{0});
        std::shuffle(order.begin(), order.end(), random_);
        return order;
    }

    // Distinct directions of random rows; random directions where there are too few.
    void begin_with_rows() {
        const std::vector<size_t> order = shuffled_rows();
        auto next = order.begin();
        for (size_t j = 0; j < dictionary_.n_atoms;) {
            std::vector<float> candidate;
            if (next != order.end()) {
                candidate = direction(train_, *next++, dictionary_.dim);
                if (is_duplicate(candidate, j)) {
                    continue;
                }
            } else {
                candidate = random_direction();
            }
            std::copy(candidate.begin(), candidate.end(), dictionary_.atom(j++));
        }
    }

    void begin_with_random_directions() {
        for (size_t j = 0; j < dictionary_.n_atoms; ++j) {
            const std::vector<float> atom = random_direction();
            std::copy(atom.begin(), atom.end(), dictionary_.atom(j));
        }
        adam_.first.resize(dictionary_.atoms.size());
        adam_.second.resize(dictionary_.atoms.size());
    }

    void encode(CodedRows& rows, float* residual_energy) const {
        rows.index.resize(rows.n * options_.sparsity);
        rows.coefficient.resize(rows.n * options_.sparsity);
        rows.count.resize(rows.n);
        omp_encode(dictionary_.atoms.data(), dictionary_.n_atoms, dictionary_.dim, rows.x.data(), rows.n,
                   {options_.sparsity}, rows.index.data(), rows.coefficient.data(), rows.count.data(), residual_energy);
    }

    void sweep_gradient(size_t sweep) {
        const size_t dim = dictionary_.dim;
        const auto share = static_cast<float>(sweep) / static_cast<float>(options_.sweeps);
        const float rate = options_.learning_rate * (1.0F + std::cos(share * std::numbers::pi_v<float>)) / 2;
        const std::vector<size_t> order = shuffled_rows();
        std::vector<float> gradient(dictionary_.atoms.size());
        CodedRows batch;
        for (size_t first = 0; first < order.size() && !stopped(); first += options_.batch) {
            batch.n = std::min(options_.batch, order.size() - first);
            batch.x.resize(batch.n * dim);
            for (size_t i = 0; i < batch.n; ++i) {
                std::copy_n(train_.x.begin() + order[first + i] * dim, dim, batch.x.begin() + i * dim);
            }
            encode(batch, nullptr);
            HWY_DYNAMIC_DISPATCH(compute_residuals)(dictionary_, options_.sparsity, batch);
            HWY_DYNAMIC_DISPATCH(compute_gradient)(batch, options_.sparsity, dim, gradient);
            HWY_DYNAMIC_DISPATCH(adam_step)(gradient, rate, adam_, dictionary_);
        }
    }

    void sweep_ksvd() {
        encode(train_, nullptr);
        HWY_DYNAMIC_DISPATCH(compute_residuals)(dictionary_, options_.sparsity, train_);
        // The nonzeros of each atom, by counting sort.
        std::vector<uint32_t> first(dictionary_.n_atoms + 1, 0);
        for_each_nonzero([&](size_t k) { ++first[train_.index[k] + 1]; });
        std::partial_sum(first.begin(), first.end(), first.begin());
        std::vector<uint32_t> users(first.back()), next(first);
        for_each_nonzero([&](size_t k) { users[next[train_.index[k]]++] = static_cast<uint32_t>(k); });
        HWY_DYNAMIC_DISPATCH(update_atoms)(first, users, options_.sparsity, dictionary_, train_);
        replace_weak_atoms(first);
    }

    template <class F>
    void for_each_nonzero(F f) const {
        for (size_t i = 0; i < train_.n; ++i) {
            for (size_t k = 0; k < train_.count[i]; ++k) {
                f(i * options_.sparsity + k);
            }
        }
    }

    void replace_weak_atoms(const std::vector<uint32_t>& first) {
        const size_t dim = dictionary_.dim;
        std::vector<size_t> weak;
        for (size_t j = 0; j < dictionary_.n_atoms; ++j) {
            if (first[j + 1] - first[j] < kMinUsers ||
                is_duplicate({dictionary_.atom(j), dictionary_.atom(j) + dim}, j)) {
                weak.push_back(j);
            }
        }
        if (weak.empty()) {
            return;
        }
        std::vector<double> error(train_.n);
        for (size_t i = 0; i < train_.n; ++i) {
            error[i] = energy_of(train_.residual.data() + i * dim, dim);
        }
        std::vector<size_t> worst(train_.n);
        std::iota(worst.begin(), worst.end(), size_t{0});
        const size_t n_candidates = std::min(train_.n, 4 * weak.size());
        std::partial_sort(worst.begin(), worst.begin() + n_candidates, worst.end(),
                          [&](size_t a, size_t b) { return error[a] > error[b]; });
        worst.resize(n_candidates);
        auto candidate = worst.begin();
        for (const size_t j : weak) {
            for (; candidate != worst.end(); ++candidate) {
                const std::vector<float> x = direction(train_, *candidate, dim);
                if (!is_duplicate(x, dictionary_.n_atoms)) {
                    std::copy(x.begin(), x.end(), dictionary_.atom(j));
                    break;
                }
            }
        }
    }

    // Returns the held-out error of the dictionary as it is.
    float keep_if_best() {
        std::vector<float> residual_energy(heldout_.n);
        encode(heldout_, residual_energy.data());
        const double lost = std::accumulate(residual_energy.begin(), residual_energy.end(), 0.0);
        const float error = static_cast<float>(std::sqrt(lost / energy_of(heldout_.x.data(), heldout_.x.size())));
        if (best_.atoms.empty() || error < best_.heldout_error) {
            best_ = {dictionary_.atoms, coefficient_levels(), error};
        }
        return error;
    }

    // Levels of the held-out coefficients.
    std::array<float, LearnedDictionary::kLevels> coefficient_levels() const {
        std::vector<float> ratios;
        for (size_t i = 0; i < heldout_.n; ++i) {
            const float* c = heldout_.coefficient.data() + i * options_.sparsity;
            float largest = 0.0F;
            for (size_t k = 0; k < heldout_.count[i]; ++k) {
                largest = std::max(largest, std::abs(c[k]));
            }
            for (size_t k = 0; k < heldout_.count[i]; ++k) {
                ratios.push_back(std::abs(c[k]) / largest);
            }
        }
        return lloyd_max_levels(std::move(ratios));
    }

    const LearnOptions& options_;
    std::mt19937_64 random_{options_.seed};
    Dictionary dictionary_;
    AdamState adam_;
    CodedRows train_, heldout_;
    LearnedDictionary best_;
};

}  // namespace

LearnedDictionary learn_dictionary(std::span<const float> rows, size_t dim, const LearnOptions& options) {
    return Learner(rows, dim, options).learn();
}

}  // namespace kvcodec
#endif  // HWY_ONCE
