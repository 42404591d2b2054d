// Measures what could make codes better at equal bytes: errors weighted by what reads the vectors, two stages,
// dictionaries that are trained on quantised coefficients. Prints the tables of docs/results/codes.md.
//     kvcodec_codes_study MODEL.gguf TOKENS
// Text is the model's own; of its rows the first half trains and the second tests. Keys are taken before RoPE.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/codec/dictionary/dictionary_codec.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/learn/dictionary_learning.h"
#include "kvcodec/learn/principal_components.h"
#include "tools/study/measure.h"
#include "tools/weights.h"

namespace kvcodec {
namespace {

using study::energy_of;
using study::kAtoms;
using study::kSparsity;
using study::Means;

constexpr std::array<double, 4> kRates = {0.08, 0.10, 0.125, 0.20};

/// Vectors [n, dim] of one head.
using Vectors = std::vector<float>;

/// K or V of one layer, by KV head, without the mean.
struct Side {
    size_t dim = 0;
    std::vector<Vectors> train, test;
    /// [n_head, dim, dim] second moments of what takes products with the vectors: queries, turned to where the keys
    /// are; rows of the output projection.
    std::vector<double> readers;

    size_t n_head() const { return train.size(); }
};

using Sides = std::vector<Side>;  // K and V of each layer in turn

size_t bytes_of(const Side& side, double rate) {
    return static_cast<size_t>(rate * static_cast<double>(sizeof(uint16_t) * side.dim));
}

// ---- rows ----------------------------------------------------------------------------------------------------------

Side split(const HarvestedRows& rows) {
    Side side;
    side.dim = rows.dim();
    side.train.resize(rows.n_head());
    side.test.resize(rows.n_head());
    const std::vector<float> x = rows.residuals();
    for (size_t i = 0; i < x.size(); i += side.dim) {
        const size_t row = i / side.dim, token = row / rows.n_head(), head = row % rows.n_head();
        Vectors& part = (token < rows.n_tokens() / 2 ? side.train : side.test)[head];
        part.insert(part.end(), x.begin() + static_cast<std::ptrdiff_t>(i),
                    x.begin() + static_cast<std::ptrdiff_t>(i + side.dim));
    }
    return side;
}

Sides read_sides(const ModelInfo& info, size_t n_tokens) {
    const GgufFile model(info.path);
    Sides sides;
    for (const HarvestedLayer& layer : study::harvest_layers(info, "", n_tokens)) {
        sides.push_back(split(layer.k));
        sides.back().readers = layer.query_moments;
        sides.push_back(split(layer.v));
        sides.back().readers = output_moments(model, info, layer.layer);
    }
    for (const Side& side : sides) {
        if (side.readers.empty()) {
            throw Error("the readers of a layer's vectors are not known");
        }
    }
    return sides;
}

// ---- codecs --------------------------------------------------------------------------------------------------------

Vectors through(const Codec& codec, std::span<const float> x) {
    const size_t n = x.size() / codec.dim();
    std::vector<std::byte> codes(n * codec.code_bytes() + Codec::kCodeSlackBytes);
    codec.encode(x.data(), n, codes.data());
    Vectors decoded(x.size());
    codec.decode(codes.data(), 0, n, decoded.data());
    return decoded;
}

Vectors difference(std::span<const float> x, std::span<const float> y) {
    Vectors d(x.size());
    std::ranges::transform(x, y, d.begin(), std::minus<>());
    return d;
}

TransformCodec transform_of(std::span<const float> train, size_t dim, size_t bytes) {
    const PrincipalComponents components = find_principal_components(train, dim);
    return {components.basis, components.variance, bytes, true};
}

std::vector<uint16_t> halves(std::span<const float> atoms) {
    std::vector<uint16_t> half(atoms.size());
    std::ranges::transform(atoms, half.begin(), float_to_half);
    return half;
}

DictionaryCodec codec_of(const LearnedDictionary& dictionary, size_t dim, size_t sparsity) {
    DictionarySettings settings;
    settings.omp.sparsity = sparsity;
    return {halves(dictionary.atoms), kAtoms, dim, dictionary.levels, settings};
}

LearnedDictionary learned(const std::vector<Vectors>& heads, size_t dim, size_t sparsity) {
    LearnOptions options;
    options.n_atoms = kAtoms;
    options.sparsity = sparsity;
    Vectors all;
    for (const Vectors& head : heads) {
        all.insert(all.end(), head.begin(), head.end());
    }
    return learn_dictionary(all, dim, options);
}

// ---- weighting -----------------------------------------------------------------------------------------------------

TransformCodec weighted_transform_of(std::span<const float> train, std::span<const double> readers, size_t dim,
                                     size_t bytes, const Tempering& tempering) {
    const WeightedComponents components = find_weighted_components(train, readers, dim, tempering);
    return {components.basis, components.variance, bytes, true};
}

/// Sum over the vectors of e^T readers e.
double seen(std::span<const double> readers, size_t dim, std::span<const float> vectors) {
    double sum = 0.0;
    for (size_t row = 0; row < vectors.size(); row += dim) {
        for (size_t i = 0; i < dim; ++i) {
            double product = 0.0;
            for (size_t j = 0; j < dim; ++j) {
                product += readers[i * dim + j] * static_cast<double>(vectors[row + j]);
            }
            sum += static_cast<double>(vectors[row + i]) * product;
        }
    }
    return sum;
}

void print_weighting(const Sides& sides) {
    fmt::print(
        "## Errors as the readers see them\n\nThe error of scores (keys) and of what attention adds to the residual "
        "stream (values): sqrt(sum e^T M e / sum x^T M x), M being the second moments of the queries or of the rows of "
        "the output projection. Transform codec along principal components, along those of x weighted by M, and with "
        "weights tempered as in training.\n\n| rate | plain | weighted | tempered |\n| --- | --- | --- | --- |\n");
    for (const double rate : kRates) {
        Means plain, weighted, tempered;
        for (size_t i = 0; i < sides.size(); ++i) {
            const Side& side = sides[i];
            const size_t bytes = bytes_of(side, rate);
            double all = 0.0, lost_plain = 0.0, lost_weighted = 0.0, lost_tempered = 0.0;
            for (size_t head = 0; head < side.n_head(); ++head) {
                const auto readers = std::span(side.readers).subspan(head * side.dim * side.dim, side.dim * side.dim);
                const Vectors& x = side.test[head];
                const Vectors& train = side.train[head];
                const auto lost = [&](const TransformCodec& codec) {
                    return seen(readers, side.dim, difference(x, through(codec, x)));
                };
                all += seen(readers, side.dim, x);
                lost_plain += lost(transform_of(train, side.dim, bytes));
                lost_weighted += lost(weighted_transform_of(train, readers, side.dim, bytes, kUntempered));
                lost_tempered += lost(weighted_transform_of(train, readers, side.dim, bytes, {}));
            }
            plain.add(i, std::sqrt(lost_plain / all));
            weighted.add(i, std::sqrt(lost_weighted / all));
            tempered.add(i, std::sqrt(lost_tempered / all));
        }
        fmt::print("| {:.1f} % | {} | {} | {} |\n", 100 * rate, plain.text(), weighted.text(), tempered.text());
        std::fflush(stdout);
    }
    fmt::print("\n");
}

// ---- two stages ----------------------------------------------------------------------------------------------------

/// One codec for each head, or one for all of them.
using Stage = std::vector<std::unique_ptr<Codec>>;

Stage transform_stage(const std::vector<Vectors>& train, size_t dim, size_t bytes) {
    Stage stage;
    for (const Vectors& head : train) {
        stage.push_back(std::make_unique<TransformCodec>(transform_of(head, dim, bytes)));
    }
    return stage;
}

Stage dictionary_stage(const std::vector<Vectors>& train, size_t dim, size_t bytes) {
    const size_t s = study::sparsity_of(bytes);
    Stage stage;
    stage.push_back(std::make_unique<DictionaryCodec>(codec_of(learned(train, dim, s), dim, s)));
    return stage;
}

/// What the stage leaves of vectors.
std::vector<Vectors> left_by(const Stage& stage, const std::vector<Vectors>& heads) {
    std::vector<Vectors> left;
    for (size_t head = 0; head < heads.size(); ++head) {
        left.push_back(difference(heads[head], through(*stage[head % stage.size()], heads[head])));
    }
    return left;
}

using MakeStage = Stage (*)(const std::vector<Vectors>&, size_t, size_t);

/// Error when the first stage has half the bytes and the second, which may be null, the others.
double error_of(const Side& side, size_t bytes, MakeStage first, MakeStage second) {
    std::vector<Vectors> train = side.train, test = side.test;
    const Stage stage = first(train, side.dim, second == nullptr ? bytes : bytes / 2);
    test = left_by(stage, test);
    if (second != nullptr) {
        train = left_by(stage, train);
        test = left_by(second(train, side.dim, bytes - bytes / 2), test);
    }
    double lost = 0.0, all = 0.0;
    for (size_t head = 0; head < side.n_head(); ++head) {
        lost += energy_of(test[head]);
        all += energy_of(side.test[head]);
    }
    return std::sqrt(lost / all);
}

void print_stages(const Sides& sides) {
    fmt::print(
        "## Two stages\n\n||x - x̂|| / ||x||. The second codec learns from what the first leaves of the training "
        "rows and codes what it leaves; each has half the bytes. Dictionaries: N={}, packed.\n\n| codes |",
        kAtoms);
    for (const double rate : kRates) {
        fmt::print(" {:.1f} % |", 100 * rate);
    }
    fmt::print("\n| --- | --- | --- | --- | --- |\n");
    const auto line = [&](const char* name, MakeStage first, MakeStage second) {
        fmt::print("| {} |", name);
        for (const double rate : kRates) {
            Means means;
            for (size_t i = 0; i < sides.size(); ++i) {
                means.add(i, error_of(sides[i], bytes_of(sides[i], rate), first, second));
            }
            fmt::print(" {} |", means.text());
            std::fflush(stdout);
        }
        fmt::print("\n");
    };
    line("transform", transform_stage, nullptr);
    line("dictionary", dictionary_stage, nullptr);
    line("transform, then dictionary", transform_stage, dictionary_stage);
    line("dictionary, then transform", dictionary_stage, transform_stage);
    line("two dictionaries", dictionary_stage, dictionary_stage);
    fmt::print("\n");
}

// ---- training on quantised coefficients ----------------------------------------------------------------------------

/// Solves (a + ridge I) x = b for b [n, columns] in place, a [n, n] symmetric and not negative.
void solve(std::vector<double>& a, size_t n, double ridge, std::vector<double>& b, size_t columns) {
    for (size_t i = 0; i < n; ++i) {
        a[i * n + i] += ridge;
        for (size_t j = 0; j <= i; ++j) {
            double sum = a[i * n + j];
            for (size_t k = 0; k < j; ++k) {
                sum -= a[i * n + k] * a[j * n + k];
            }
            a[i * n + j] = i == j ? std::sqrt(sum) : sum / a[j * n + j];
        }
    }
    const auto subtract = [&](size_t to, size_t from, double factor) {
        for (size_t c = 0; c < columns; ++c) {
            b[to * columns + c] -= factor * b[from * columns + c];
        }
    };
    const auto divide = [&](size_t row) {
        for (size_t c = 0; c < columns; ++c) {
            b[row * columns + c] /= a[row * n + row];
        }
    };
    for (size_t i = 0; i < n; ++i) {
        for (size_t k = 0; k < i; ++k) {
            subtract(i, k, a[i * n + k]);
        }
        divide(i);
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; ++k) {
            subtract(i, k, a[k * n + i]);
        }
        divide(i);
    }
}

/// One round of the method of optimal directions (Engan, Aase, Husøy 1999): the atoms that fit best with the
/// coefficients as they are, normalised. Quantised: with those that are stored.
void improve(LearnedDictionary& dictionary, const std::vector<Vectors>& heads, size_t dim, size_t sparsity,
             bool quantised) {
    std::vector<double> moments(kAtoms * kAtoms), right(kAtoms * dim);
    const Packing packing(kAtoms, sparsity, CoefficientFormat::kSigned4, CodeLayout::kPacked, dictionary.levels);
    std::vector<uint32_t> offset(packing.stride());
    std::vector<float> stored(packing.stride());
    std::vector<std::byte> code(packing.code_bytes() + Codec::kCodeSlackBytes);
    for (const Vectors& x : heads) {
        const size_t n = x.size() / dim;
        std::vector<uint16_t> index(n * sparsity);
        std::vector<float> coefficient(n * sparsity), gram(n * sparsity * gram_stride(sparsity));
        std::vector<uint8_t> count(n);
        omp_encode(dictionary.atoms.data(), kAtoms, dim, x.data(), n, {sparsity}, index.data(), coefficient.data(),
                   count.data(), nullptr, gram.data());
        for (size_t row = 0; row < n; ++row) {
            std::copy_n(&index[row * sparsity], sparsity, offset.begin());
            std::copy_n(&coefficient[row * sparsity], sparsity, stored.begin());
            if (quantised) {
                packing.pack(&index[row * sparsity], &coefficient[row * sparsity], count[row], code.data(),
                             {&gram[row * sparsity * gram_stride(sparsity)], gram_stride(sparsity)});
                packing.unpack(code.data(), std::array<uint16_t, 1>{0}, 1, offset.data(), stored.data());
            }
            for (size_t i = 0; i < count[row]; ++i) {
                const auto c = static_cast<double>(stored[i]);
                for (size_t j = 0; j < count[row]; ++j) {
                    moments[offset[i] * kAtoms + offset[j]] += c * static_cast<double>(stored[j]);
                }
                for (size_t d = 0; d < dim; ++d) {
                    right[offset[i] * dim + d] += c * static_cast<double>(x[row * dim + d]);
                }
            }
        }
    }
    double trace = 0.0;
    for (size_t i = 0; i < kAtoms; ++i) {
        trace += moments[i * kAtoms + i] / static_cast<double>(kAtoms);
    }
    // Atoms that are hardly used stay what they are.
    const double ridge = 1e-3 * trace;
    for (size_t i = 0; i < right.size(); ++i) {
        right[i] += ridge * static_cast<double>(dictionary.atoms[i]);
    }
    solve(moments, kAtoms, ridge, right, dim);
    for (size_t i = 0; i < kAtoms; ++i) {
        double energy = 0.0;
        for (size_t d = 0; d < dim; ++d) {
            energy += right[i * dim + d] * right[i * dim + d];
        }
        for (size_t d = 0; d < dim && energy > 0.0; ++d) {
            dictionary.atoms[i * dim + d] = static_cast<float>(right[i * dim + d] / std::sqrt(energy));
        }
    }
}

void print_quantisation_aware(const Sides& sides) {
    constexpr int kRounds = 4;
    fmt::print(
        "## Dictionaries trained on quantised coefficients\n\n||x - x̂|| / ||x|| of stored codes, N={}. {} rounds of "
        "optimal directions after K-SVD.\n\n| s | K-SVD | and rounds with fitted coefficients | and rounds with "
        "stored ones |\n| --- | --- | --- | --- |\n",
        kAtoms, kRounds);
    for (const size_t s : {kSparsity, 2 * kSparsity}) {
        std::array<Means, 3> means;
        for (size_t i = 0; i < sides.size(); ++i) {
            const Side& side = sides[i];
            const LearnedDictionary base = learned(side.train, side.dim, s);
            std::array<LearnedDictionary, 3> dictionaries = {base, base, base};
            for (int round = 0; round < kRounds; ++round) {
                improve(dictionaries[1], side.train, side.dim, s, false);
                improve(dictionaries[2], side.train, side.dim, s, true);
            }
            for (size_t d = 0; d < means.size(); ++d) {
                const DictionaryCodec codec = codec_of(dictionaries[d], side.dim, s);
                double lost = 0.0, all = 0.0;
                for (const Vectors& x : side.test) {
                    lost += energy_of(difference(x, through(codec, x)));
                    all += energy_of(x);
                }
                means[d].add(i, std::sqrt(lost / all));
            }
        }
        fmt::print("| {} | {} | {} | {} |\n", s, means[0].text(), means[1].text(), means[2].text());
        std::fflush(stdout);
    }
}

int run(std::span<char*> arguments) {
    if (arguments.size() != 3) {
        fmt::print(stderr, "usage: {} MODEL.gguf TOKENS\n", arguments[0]);
        return 1;
    }
    const ModelInfo model = read_model_info(arguments[1]);
    const size_t n_tokens = std::stoul(arguments[2]);
    const Sides sides = read_sides(model, n_tokens);
    fmt::print(
        "{}, {} tokens of its own text, half to train on and half to test on; mean removed, keys before RoPE; K / V, "
        "means over {} layers.\n\n",
        model.name, n_tokens, study::kLayers);
    print_weighting(sides);
    print_stages(sides);
    print_quantisation_aware(sides);
    return 0;
}

}  // namespace
}  // namespace kvcodec

int main(int argc, char** argv) {
    return kvcodec::study::run(argc, argv, kvcodec::run);
}
