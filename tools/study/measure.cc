#include "tools/study/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <numeric>
#include <thread>
#include <utility>

#include "kvcodec/codec/dictionary/packing.h"
#include "kvcodec/error.h"

namespace kvcodec::study {

double energy_of(std::span<const float> x) {
    return std::transform_reduce(x.begin(), x.end(), 0.0, std::plus<>(),
                                 [](float v) { return static_cast<double>(v) * static_cast<double>(v); });
}

std::vector<HarvestedLayer> harvest_layers(const ModelInfo& model, const std::string& file, size_t n_tokens) {
    HarvestOptions options;
    if (!file.empty()) {
        options.text_files = {file};
    }
    options.n_tokens = n_tokens;
    options.n_threads = std::max(1U, std::thread::hardware_concurrency());
    Harvest harvested = Harvester(model, options).harvest();
    if (harvested.layers.size() < kLayers) {
        throw Error(fmt::format("the study needs a model with {} layers that can be coded", kLayers));
    }
    std::vector<HarvestedLayer> layers;
    for (size_t i = 0; i < kLayers; ++i) {
        layers.push_back(std::move(harvested.layers[i * (harvested.layers.size() - 1) / (kLayers - 1)]));
    }
    fmt::print(stderr, "{}: {} tokens\n", harvested.source, harvested.n_tokens);
    return layers;
}

size_t code_bytes(size_t sparsity) {
    return Packing::code_bytes(kAtoms, sparsity, CoefficientFormat::kSigned4, CodeLayout::kPacked);
}

size_t sparsity_of(size_t bytes) {
    size_t s = 1;
    while (s < kMaxSparsity && code_bytes(s + 1) <= bytes) {
        ++s;
    }
    return s;
}

int run(int argc, char** argv, int (*study)(std::span<char*> arguments)) {
    try {
        return study({argv, static_cast<size_t>(argc)});
    } catch (const std::exception& error) {
        fmt::print(stderr, "error: {}\n", error.what());
        return 1;
    }
}

std::string Means::text() const {
    return fmt::format("{:.3f} / {:.3f}", k, v);
}

}  // namespace kvcodec::study
