#include "ggml-kvcodec/codec_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvcodec/codec/dictionary/dictionary_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/error.h"

namespace kvcodec::host {
namespace {

constexpr double kDefaultBudget = 0.20;

// The largest of the candidates whose code fits the budget, else the smallest.
template <class Bytes>
uint32_t largest_within(double budget, size_t dim, uint32_t smallest, uint32_t largest, const Bytes& code_bytes) {
    const double allowed = budget * static_cast<double>(dim) * sizeof(uint16_t);
    uint32_t best = smallest;
    for (uint32_t candidate = smallest; candidate <= largest; ++candidate) {
        if (static_cast<double>(code_bytes(candidate)) <= allowed + 1e-9) {
            best = candidate;
        }
    }
    return best;
}

}  // namespace

CodecChoice::CodecChoice(const Options& options) : options_(options) {
    if (!options.artifact.empty() && options.codec != Options::CodecChoice::kScalar && !off()) {
        artifact_ = read_artifact(options.artifact);
        for (const LayerArtifact& layer : artifact_->layers) {
            fixed_bytes_ += (layer.k.atoms.size() + layer.v.atoms.size()) * sizeof(uint16_t);
        }
    } else if (options.codec == Options::CodecChoice::kDictionary) {
        throw Error("codec=dictionary needs artifact=FILE; make one with `kvcodec train -m MODEL`");
    }
}

std::shared_ptr<const RopeTables> CodecChoice::tables(const Rope& rope) {
    for (const auto& known : tables_) {
        if (known->rope().params() == rope.params() && known->rope().head_dim() == rope.head_dim()) {
            return known;
        }
    }
    tables_.push_back(std::make_shared<const RopeTables>(rope));
    fixed_bytes_ += tables_.back()->bytes();
    return tables_.back();
}

CodecChoice::Choice CodecChoice::choose(const LayerFacts& facts) {
    try {
        return artifact_ ? choose_dictionary(facts) : choose_scalar(facts);
    } catch (const Error& error) {
        return {{}, error.what()};
    }
}

CodecChoice::Choice CodecChoice::choose_dictionary(const LayerFacts& facts) {
    const auto found = std::find_if(artifact_->layers.begin(), artifact_->layers.end(),
                                    [&](const LayerArtifact& layer) { return layer.layer == facts.layer; });
    if (found == artifact_->layers.end()) {
        return {{}, "the artifact has no dictionary for it"};
    }
    const LayerGeometry& g = facts.geometry;
    if (found->k.dim != g.dim_k || found->v.dim != g.dim_v || found->n_head_kv != g.n_head_kv) {
        return {{}, fmt::format("the artifact was trained for {} KV heads of {}/{}, the model has {} of {}/{}",
                                found->n_head_kv, found->k.dim, found->v.dim, g.n_head_kv, g.dim_k, g.dim_v)};
    }
    const bool rotated = facts.k_origin.rotation == RowOrigin::Rotation::kKnown;
    if (facts.k_origin.rotation == RowOrigin::Rotation::kUnknown) {
        return {{}, "its RoPE is of a kind that kvcodec does not know"};
    }
    if (found->rope != (rotated ? facts.k_origin.rope : RopeParams{})) {
        return {{}, "its RoPE differs from the one that the artifact was trained with"};
    }
    const auto sparsity = [&](const SideArtifact& side, std::optional<uint32_t> chosen) {
        return chosen.value_or(largest_within(
            options_.budget.value_or(kDefaultBudget), side.dim, 1,
            std::min<uint32_t>(kMaxSparsity, side.dim), [&](uint32_t s) {
                return Packing::code_bytes(side.n_atoms, s, options_.coefficients, options_.layout);
            }));
    };
    const auto codec = [&](const SideArtifact& side, uint32_t s) {
        const DictionarySettings settings{{s, options_.relative_error}, options_.coefficients, options_.layout};
        return std::make_shared<const DictionaryCodec>(side.atoms, side.n_atoms, side.dim, side.levels, settings);
    };
    const uint32_t s_k = sparsity(found->k, options_.s_k);
    const uint32_t s_v = sparsity(found->v, options_.s_v);
    // Held-out error is known at the training sparsity; it falls slower than with the root of s.
    const auto expected = [&](const SideArtifact& side, uint32_t s) {
        const auto ratio = static_cast<float>(artifact_->training_sparsity) / static_cast<float>(s);
        return std::min(1.0F, side.heldout_error * std::max(1.0F, std::sqrt(ratio)));
    };
    Choice choice;
    choice.expected_error_k = expected(found->k, s_k);
    choice.expected_error_v = expected(found->v, s_v);
    LayerCodecs codecs{codec(found->k, s_k), codec(found->v, s_v), {}, found->v.mean, Rope(found->rope, g.dim_k)};
    codecs.k_mean = RotatingMean(tables(codecs.rope), found->k.mean, g.n_head_kv);
    fixed_bytes_ += codecs.k_mean.bytes() + codecs.v_mean.size() * sizeof(float);
    choice.codecs = std::move(codecs);
    return choice;
}

CodecChoice::Choice CodecChoice::choose_scalar(const LayerFacts& facts) {
    const LayerGeometry& g = facts.geometry;
    const bool has_bias = std::any_of(facts.k_origin.bias.begin(), facts.k_origin.bias.end(),
                                      [](float value) { return value != 0; });
    if (has_bias && facts.k_origin.rotation == RowOrigin::Rotation::kUnknown) {
        return {{}, "it has a K bias under a RoPE of a kind that kvcodec does not know"};
    }
    const auto codec = [&](size_t dim, std::optional<uint32_t> chosen) {
        constexpr uint32_t kBits[] = {3, 4, 8};
        const auto code_bytes = [&](uint32_t i) { return ScalarCodec(dim, kBits[i]).code_bytes(); };
        const uint32_t bits =
            chosen.value_or(kBits[largest_within(options_.budget.value_or(kDefaultBudget), dim, 0, 2, code_bytes)]);
        return std::make_shared<const ScalarCodec>(dim, bits);
    };
    LayerCodecs codecs{codec(g.dim_k, options_.bits_k), codec(g.dim_v, options_.bits_v), {}, facts.v_origin.bias, {}};
    const bool rotated = facts.k_origin.rotation == RowOrigin::Rotation::kKnown;
    codecs.rope = Rope(rotated ? facts.k_origin.rope : RopeParams{}, g.dim_k);
    if (has_bias) {
        codecs.k_mean = RotatingMean(tables(codecs.rope), facts.k_origin.bias, g.n_head_kv);
        fixed_bytes_ += codecs.k_mean.bytes();
    }
    return {std::move(codecs), {}};
}

}  // namespace kvcodec::host
