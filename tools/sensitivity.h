// How much the model's predictions suffer from errors in K or V of each layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "tools/harvest.h"

namespace kvcodec {

struct SensitivityOptions {
    std::string model;                            ///< path
    std::string plugin;                           ///< path
    std::string artifact;                         ///< path, of the artifact as it is: its means are removed
    std::vector<std::vector<int32_t>> sequences;  ///< of tokens; predictions after the first quarter of each count
    size_t n_threads = 1;
    std::function<void(size_t done, size_t total)> progress;  ///< may throw to stop
};

/// Beginnings of harvested sequences, up to n_tokens in all; none of fewer than 32.
std::vector<std::vector<int32_t>> sequences_to_measure(const Harvest& harvest, size_t n_tokens);

/// Fills in SideArtifact::sensitivity of every layer: the mean KL divergence from an f16 cache when that side alone is
/// coded with 2 bits by the scalar codec, over the loss of that. Two passes of the model over the sequences for each
/// layer. Throws Error; the artifact is changed only when all is measured.
void measure_sensitivity(Artifact& artifact, const SensitivityOptions& options);

}  // namespace kvcodec
