// Learns the dictionary of the dictionary codec from sample vectors.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace kvcodec {

enum class DictionaryLearner : uint8_t {
    /// Sweeps of orthogonal matching pursuit and approximate K-SVD (Rubinstein, Zibulevsky, Elad 2008, algorithm 5);
    /// atoms that are unused or equal to another are replaced by the rows represented worst.
    kKsvd,
    /// As published for KV-Dict / Lexico (arXiv 2412.08890): from random directions, one step of Adam after the pursuit
    /// of each batch, down the part of the gradient that keeps the atoms' norms, at a rate that falls along a cosine
    /// from sweep to sweep. Unlike in the released code, atoms are normalised after the step, not before it.
    kGradient,
};

struct LearnOptions {
    DictionaryLearner learner = DictionaryLearner::kKsvd;
    size_t n_atoms = 1024;
    size_t sparsity = 8;          ///< atoms per vector in training, <= kMaxSparsity
    size_t sweeps = 8;            ///< passes over all rows; 0: what learning begins with
    float learning_rate = 1e-4F;  ///< of kGradient, at the beginning
    size_t batch = 64;            ///< rows of a step of kGradient, not 0
    uint64_t seed = 0;
    /// Checked between sweeps, of kGradient between batches: once true, the best dictionary so far is returned. May be
    /// null.
    const std::atomic<bool>* stop = nullptr;
    /// Called after each sweep with the number of sweeps done and the held-out error. May be empty.
    std::function<void(size_t sweeps_done, float heldout_error)> progress;
};

struct LearnedDictionary {
    static constexpr size_t kLevels = 8;

    std::vector<float> atoms;  ///< [n_atoms, dim], unit L2 norm
    /// Ascending Lloyd-Max levels in (0, 1] of |coefficient| / (largest |coefficient| of the vector).
    std::array<float, kLevels> levels{};
    float heldout_error = 0.0F;  ///< sqrt(sum ||x - D y||^2 / sum ||x||^2) over rows that training never saw
};

/// Minimises sum ||x - D y||^2 over dictionaries D and y with at most `sparsity` nonzeros. Returns the dictionary of
/// the sweep with the least held-out error. K-SVD begins with rows of the text as atoms.
///
/// rows: [n, dim] row-major. Every 16th run of 256 rows is held out (of few rows: shorter runs), so rows of one text
/// should be neighbours. Zero and non-finite rows are left out. Single-threaded: run one call per dictionary in
/// parallel; the result depends on rows and seed only. Throws Error if there are fewer training rows than atoms.
LearnedDictionary learn_dictionary(std::span<const float> rows, size_t dim, const LearnOptions& options);

}  // namespace kvcodec
