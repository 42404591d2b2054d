// What the studies share: rows of some of a model's layers, and means over them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/artifact/model_info.h"
#include "tools/harvest.h"

namespace kvcodec::study {

inline constexpr size_t kLayers = 5;  ///< so many of the model's, evenly spread
inline constexpr size_t kAtoms = 1024;
inline constexpr size_t kSparsity = 8;

/// Sum of squares.
double energy_of(std::span<const float> x);

/// kLayers of the model over n_tokens of a text file; of the model's own text if there is none.
std::vector<HarvestedLayer> harvest_layers(const ModelInfo& model, const std::string& file, size_t n_tokens);

/// Bytes of a packed dictionary code of so many atoms.
size_t code_bytes(size_t sparsity);
/// Most atoms that codes of so many bytes hold, at least 1.
size_t sparsity_of(size_t bytes);

/// The study with its arguments; an exception is printed and ends it with 1.
int run(int argc, char** argv, int (*study)(std::span<char*> arguments));

/// Means over layers of a measurement of each side.
struct Means {
    double k = 0.0, v = 0.0;

    /// Sides are K and V of each layer in turn.
    void add(size_t side, double value) { (side % 2 == 0 ? k : v) += value / static_cast<double>(kLayers); }
    std::string text() const;
};

}  // namespace kvcodec::study
