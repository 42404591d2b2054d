// Codecs over random data for the benchmarks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <numbers>
#include <numeric>
#include <random>
#include <vector>

#include "kvcodec/codec/dictionary/dictionary_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/half.h"

namespace kvcodec {

inline std::vector<float> random_rows(size_t n, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) {
        v = normal(rng);
    }
    return x;
}

/// [n_atoms, dim] of unit length.
inline std::vector<float> random_atoms(size_t n_atoms, size_t dim) {
    std::vector<float> atoms = random_rows(n_atoms * dim, 1);
    for (size_t i = 0; i < atoms.size(); i += dim) {
        const float length = std::sqrt(std::inner_product(&atoms[i], &atoms[i] + dim, &atoms[i], 0.0F));
        for (size_t k = 0; k < dim; ++k) {
            atoms[i + k] /= length;
        }
    }
    return atoms;
}

inline std::shared_ptr<const Codec> dictionary_codec(size_t dim, size_t n_atoms, size_t sparsity) {
    constexpr float kLevels[Packing::kLevels] = {0.08F, 0.17F, 0.27F, 0.38F, 0.5F, 0.64F, 0.8F, 1.0F};
    std::vector<uint16_t> atoms;
    for (const float v : random_atoms(n_atoms, dim)) {
        atoms.push_back(float_to_half(v));
    }
    DictionarySettings settings;
    settings.omp.sparsity = sparsity;
    return std::make_shared<DictionaryCodec>(std::move(atoms), n_atoms, dim, kLevels, settings);
}

/// 3.2 bits an element: a fifth of f16.
inline std::shared_ptr<const TransformCodec> transform_codec(size_t dim, bool before_rope) {
    std::vector<float> basis(dim * dim);  // of a cosine transform
    std::vector<float> variance(dim);
    for (size_t i = 0; i < dim; ++i) {
        for (size_t k = 0; k < dim; ++k) {
            const double turns = static_cast<double>(i) * (static_cast<double>(k) + 0.5) / static_cast<double>(2 * dim);
            basis[i * dim + k] = static_cast<float>(std::sqrt((i == 0 ? 1.0 : 2.0) / static_cast<double>(dim)) *
                                                    std::cos(2.0 * std::numbers::pi * turns));
        }
        variance[i] = std::exp(-4.0F * static_cast<float>(i) / static_cast<float>(dim));
    }
    return std::make_shared<TransformCodec>(basis, variance, dim * 2 / 5, before_rope);
}
constexpr int64_t kTransform = 6;

/// The codecs that the benchmarks go through, by number.
inline std::shared_ptr<const Codec> bench_codec(int64_t number, size_t dim) {
    switch (number) {
        case 0:
            return dictionary_codec(dim, 1024, 8);
        case 1:
            return dictionary_codec(dim, 1024, 14);
        case 2:
            return std::make_shared<ScalarCodec>(dim, 2);
        case 3:
            return std::make_shared<ScalarCodec>(dim, 3);
        case 4:
            return std::make_shared<ScalarCodec>(dim, 4);
        case kTransform:
            return transform_codec(dim, false);
        default:
            return std::make_shared<ScalarCodec>(dim, 8);
    }
}
constexpr int64_t kBenchCodecs = 7;

}  // namespace kvcodec
