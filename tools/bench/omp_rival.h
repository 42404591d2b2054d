// SPAMS' orthogonal matching pursuit (Mairal et al.; PyPI spams-bin), where the user has it: what encoding is compared
// with.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

namespace kvcodec {

struct OmpRun {
    double seconds = 0;  ///< a vector
    double loss = 0;     ///< sum ||x - x̂||² / sum ||x||²
};

/// Runs `python` with SPAMS on one thread. atoms: [n_atoms, dim] of unit length, x: [n, dim]. Nothing where there is no
/// such Python or no SPAMS; throws Error if it fails otherwise.
std::optional<OmpRun> run_spams(const std::string& python, std::span<const float> atoms, std::span<const float> x,
                                size_t dim, size_t sparsity);
/// The same with omp_encode().
OmpRun run_own_omp(std::span<const float> atoms, std::span<const float> x, size_t dim, size_t sparsity);

}  // namespace kvcodec
