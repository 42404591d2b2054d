#include "ggml-kvcodec/codec_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "kvcodec/codec/baseline/kivi_codec.h"
#include "kvcodec/codec/baseline/token_codec.h"
#include "kvcodec/codec/baseline/turboquant_codec.h"
#include "kvcodec/codec/baseline/zipcache_codec.h"
#include "kvcodec/codec/dictionary/dictionary_codec.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/codec/variable_block.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"

namespace kvcodec::host {
namespace {

// Without the means of an artifact 2 bits are too few for sensible text.
constexpr uint32_t kFewestBitsUntrained = 3;

// The most bits whose code fits the budget; `fewest` when none does.
uint32_t scalar_bits(double budget, size_t dim, uint32_t fewest) {
    uint32_t best = fewest;
    for (const uint32_t bits : ScalarCodec::kBits) {
        if (bits >= fewest && fits_budget(ScalarCodec::bytes_of(dim, bits), budget, dim)) {
            best = bits;
        }
    }
    return best;
}

// One of n equal parts of a list.
template <typename T>
std::span<const T> part_of(const std::vector<T>& all, size_t i, size_t n) {
    return std::span(all).subspan(i * all.size() / n, all.size() / n);
}

// By head, or by set of heads that are coded together.
std::vector<std::shared_ptr<const TransformCodec>> transforms(const SideArtifact& trained, size_t n_codes,
                                                              size_t code_bytes, bool before_rope, float unbias) {
    std::vector<std::shared_ptr<const TransformCodec>> codecs;
    for (size_t i = 0; i < n_codes; ++i) {
        std::vector<float> basis;
        std::ranges::transform(part_of(trained.basis, i, n_codes), std::back_inserter(basis), half_to_float);
        codecs.push_back(std::make_shared<const TransformCodec>(basis, part_of(trained.variance, i, n_codes),
                                                                code_bytes, before_rope, unbias));
    }
    return codecs;
}

// Throws Error where the options ask for what this kind of artifact, or none, cannot give.
void check_kind(const Options& options, std::optional<Artifact::Kind> kind) {
    const bool latent = kind == Artifact::Kind::kLatent;
    const auto needs = [&](const char* what, const char* command) {
        throw Error(fmt::format(
            "{} needs artifact=FILE of `kvcodec {} -m MODEL`{}", what, command,
            kind ? fmt::format("; {} is of `kvcodec {}`", options.artifact, latent ? "lowrank" : "train") : ""));
    };
    if (options.codec == Options::CodecChoice::kDictionary && kind != Artifact::Kind::kDictionary) {
        needs("codec=dictionary", "train");
    }
    if (options.codec == Options::CodecChoice::kTransform && kind != Artifact::Kind::kDictionary) {
        needs("codec=transform", "train");
    }
    if (options.codec == Options::CodecChoice::kLatent && !latent) {
        needs("codec=latent", "lowrank -o FILE");
    }
    if (options.codec == Options::CodecChoice::kAuto && !latent &&
        (options.bits_k == LatentSpace::kHalfBits || options.bits_v == LatentSpace::kHalfBits)) {
        needs("bits=16", "lowrank -o FILE");
    }
    const Options defaults;
    if (latent && (options.s_k || options.s_v || options.relative_error_k != 0.0F || options.relative_error_v != 0.0F ||
                   options.coefficients != defaults.coefficients || options.layout != defaults.layout)) {
        needs("s=, relative_error=, coefficients= or layout=", "train");
    }
}

bool has_nonzero(const std::vector<float>& values) {
    return std::any_of(values.begin(), values.end(), [](float value) { return value != 0; });
}

// Whether what an artifact calls the mean is the model's own bias, as in low ranks of the weights.
bool is_mean_of(const std::vector<float>& mean, const std::vector<float>& bias) {
    return mean == bias || (bias.empty() && !has_nonzero(mean));
}

}  // namespace

CodecChoice::CodecChoice(const Options& options) : options_(options), budget_(options.budget.value_or(kDefaultBudget)) {
    if (!options.artifact.empty() && !off() && !options.is_baseline()) {
        artifact_ = read_artifact(options.artifact);
    }
    check_kind(options, artifact_ ? std::optional(artifact_->kind) : std::nullopt);
}

std::shared_ptr<const RopeTables> CodecChoice::tables(const Rope& rope) {
    for (const auto& known : tables_) {
        if (known->rope().params() == rope.params() && known->rope().head_dim() == rope.head_dim()) {
            return known;
        }
    }
    tables_.push_back(std::make_shared<const RopeTables>(rope));
    return tables_.back();
}

size_t CodecChoice::shared_bytes() const {
    const std::lock_guard lock(mutex_);
    size_t bytes = 0;
    for (const auto& table : tables_) {
        bytes += table->bytes();
    }
    for (const auto& [key, codec] : baselines_) {
        bytes += codec->fixed_bytes();
    }
    for (size_t i = 0; artifact_ && i < artifact_->layers.size(); ++i) {
        for (const SideArtifact* side : {&artifact_->layers[i].k, &artifact_->layers[i].v}) {
            bytes += (side->atoms.size() + side->basis.size() + side->directions.size()) * sizeof(uint16_t) +
                     (side->mean.size() + side->variance.size()) * sizeof(float);
        }
    }
    return bytes;
}

std::shared_ptr<const Codec> CodecChoice::baseline(Side side, size_t dim, std::optional<uint32_t> bits) {
    // Only KIVI and ZipCache treat the two sides differently.
    const bool zipcache = options_.codec == Options::CodecChoice::kZipCache;
    const bool per_channel = (zipcache || options_.codec == Options::CodecChoice::kKivi) && side == Side::kK;
    const std::tuple key(per_channel ? Side::kK : Side::kV, dim, bits);
    if (const auto known = baselines_.find(key); known != baselines_.end()) {
        return known->second;
    }
    std::shared_ptr<const Codec> codec;
    if (options_.codec == Options::CodecChoice::kTurboQuant) {
        codec = std::make_shared<const TurboQuantCodec>(dim, bits.value_or(3));
    } else if (zipcache && per_channel) {
        codec = std::make_shared<const ZipCacheKeyCodec>(dim);
    } else if (zipcache) {
        codec = std::make_shared<const ZipCacheValueCodec>(dim);
    } else if (per_channel) {
        codec = std::make_shared<const KiviKeyCodec>(dim, bits.value_or(2));
    } else {
        codec = std::make_shared<const TokenCodec>(dim, bits.value_or(2));
    }
    baselines_[key] = codec;
    return codec;
}

// Salient rows among all that make the mean rate the budget. Throws Error where no share does.
double CodecChoice::salient_share(const LayerCodecs& codecs) const {
    constexpr double kPublished = 0.6;  // of the released code; the paper's for GSM8k
    if (!options_.budget) {
        return kPublished;
    }
    const auto rate = [&](bool salient) {
        return static_cast<double>(codecs.k->row_bits(salient) + codecs.v->row_bits(salient)) /
               static_cast<double>(8 * sizeof(uint16_t) * (codecs.k->dim() + codecs.v->dim()));
    };
    const double share = (*options_.budget - rate(false)) / (rate(true) - rate(false));
    if (share < 0 || share > 1) {
        throw Error(
            fmt::format("with heads of {} and {} codec=zipcache takes budgets from {:.1f} % to {:.1f} %, not "
                        "{:.4g} %",
                        codecs.k->dim(), codecs.v->dim(), std::ceil(1000 * rate(false)) / 10,
                        std::floor(1000 * rate(true)) / 10, 100 * *options_.budget));
    }
    return share;
}

CodecChoice::Choice CodecChoice::choose_baseline(const LayerGeometry& geometry) {
    try {
        LayerCodecs codecs;
        codecs.k = baseline(Side::kK, geometry.dim_k, options_.bits_k);
        codecs.v = baseline(Side::kV, geometry.dim_v, options_.bits_v);
        Choice choice;
        if (options_.codec == Options::CodecChoice::kZipCache) {
            choice.salient_share = salient_share(codecs);
        }
        choice.codecs = std::move(codecs);
        return choice;
    } catch (const Error& error) {
        return {{}, error.what()};
    }
}

CodecChoice::SideChoice CodecChoice::dictionary(Side side, const SideArtifact& trained, uint32_t s) const {
    const float unbias = options_.layout == CodeLayout::kPublished ? 0.0F : unbias_of(side);
    const float threshold = relative_error(side);
    const DictionarySettings settings{
        {s, threshold}, options_.coefficients, options_.layout, unbias, options_.adaptive};
    // The error at the training sparsity is known; with fewer atoms it grows, but slower than with the root of the
    // ratio.
    const float ratio = static_cast<float>(artifact_->training_sparsity) / static_cast<float>(s);
    const float expected = trained.heldout_error * std::max(1.0F, std::sqrt(ratio));
    // What stops at the threshold has that error, and more with its shrinkage undone.
    const float asked = threshold / std::sqrt(1.0F - threshold * threshold);
    return {
        std::make_shared<const DictionaryCodec>(trained.atoms, trained.n_atoms, trained.dim, trained.levels, settings),
        {},
        std::min(1.0F, std::max(expected, asked))};
}

CodecChoice::SideChoice CodecChoice::choose_side(Side side, size_t dim, const SideArtifact* trained,
                                                 std::optional<uint32_t> s, std::optional<uint32_t> bits) const {
    const auto scalar = [&](uint32_t fewest) {
        return SideChoice{std::make_shared<const ScalarCodec>(dim, bits.value_or(scalar_bits(budget_, dim, fewest)),
                                                              unbias_of(side))};
    };
    const bool only_scalar = options_.codec == Options::CodecChoice::kScalar;
    if (trained == nullptr || only_scalar) {
        return scalar(trained == nullptr && !only_scalar ? kFewestBitsUntrained : ScalarCodec::kBits.front());
    }
    if (!may_take_dictionary(side, dim, s, bits)) {
        return scalar(ScalarCodec::kBits.front());
    }
    if (s) {
        return dictionary(side, *trained, *s);
    }
    const bool variable = relative_error(side) > 0.0F && options_.layout == CodeLayout::kPacked;
    const auto bytes_beside = variable ? static_cast<size_t>(std::ceil(1 + VariableBlock::kBytesBesideCode)) : 0;
    uint32_t largest = 1;
    for (uint32_t candidate = 1; candidate <= std::min<size_t>(kMaxSparsity, dim); ++candidate) {
        if (fits_budget(bytes_beside + Packing::code_bytes(trained->n_atoms + options_.adaptive, candidate,
                                                           options_.coefficients, options_.layout),
                        budget_, dim)) {
            largest = candidate;
        }
    }
    return dictionary(side, *trained, largest);
}

// Whether a side of a layer without transform may be coded by its dictionary.
bool CodecChoice::may_take_dictionary(Side side, size_t dim, std::optional<uint32_t> s,
                                      std::optional<uint32_t> bits) const {
    return options_.codec == Options::CodecChoice::kDictionary ||
           (options_.codec == Options::CodecChoice::kAuto &&
            (s || relative_error(side) > 0.0F || (!bits && !fits_budget(ScalarCodec::bytes_of(dim, 2), budget_, dim))));
}

// Settles the budget and what it is spent on, once: contexts with the same options have the same codecs.
void CodecChoice::plan(const LayerFacts& facts) {
    if (planned_) {
        return;
    }
    BudgetPlan settled =
        settle_budget(artifact_ ? &*artifact_ : nullptr, options_, {facts.f16_bytes, facts.dense_tokens, 0});
    budget_ = settled.share;
    plan_ = std::move(settled.layers);
    latents_ = settled.latents;
    if (artifact_) {
        drop_unused(*artifact_);
    }
    planned_ = true;
}

// What no codec of these options reads is not kept in memory.
void CodecChoice::drop_unused(Artifact& artifact) const {
    for (LayerArtifact& layer : artifact.layers) {
        const auto planned = plan_.find(layer.layer);
        for (SideArtifact* side : {&layer.k, &layer.v}) {
            const bool is_k = side == &layer.k;
            if (!latents_) {
                side->directions = {};
            }
            const SidePlan* plan = planned == plan_.end() ? nullptr : is_k ? &planned->second.k : &planned->second.v;
            if (plan == nullptr || plan->scalar_bits) {
                side->basis = {};
                side->variance = {};
            }
            if (plan != nullptr ||
                !may_take_dictionary(is_k ? Side::kK : Side::kV, side->dim, is_k ? options_.s_k : options_.s_v,
                                     is_k ? options_.bits_k : options_.bits_v)) {
                side->atoms = {};
            }
        }
    }
}

CodecChoice::SideChoice CodecChoice::planned_side(Side side, const SidePlan& plan, const SideArtifact& trained,
                                                  bool before_rope) const {
    if (plan.scalar_bits) {
        return {std::make_shared<const ScalarCodec>(trained.dim, *plan.scalar_bits, unbias_of(side))};
    }
    SideChoice choice;
    TransformCodec::Expected expected;
    for (auto& codec : transforms(trained, plan.n_codes, plan.code_bytes, before_rope, unbias_of(side))) {
        expected.energy += codec->expected().energy;
        expected.lost += codec->expected().lost;
        if (trained.joint_heads == 1) {
            choice.heads.push_back(std::move(codec));
            continue;
        }
        for (size_t head = 0; head < trained.joint_heads; ++head) {
            choice.heads.push_back(std::make_shared<const TransformHead>(codec, head, trained.joint_heads));
        }
    }
    choice.codec = choice.heads[0];
    const double share = expected.energy > 0 ? std::min(expected.lost / expected.energy, 0.999) : 0.0;
    choice.expected_error = static_cast<float>(std::sqrt(share / (1 - share)));  // with all of the gain
    return choice;
}

CodecChoice::SideChoice CodecChoice::latent_side(Side side, const SideArtifact& trained, size_t n_heads,
                                                 bool before_rope) const {
    const uint32_t bits = side == Side::kK ? latents_->k : latents_->v;
    const size_t n_joint = trained.joint_heads, n_sets = n_heads / n_joint;
    SideChoice choice;
    for (size_t set = 0; set < n_sets; ++set) {
        std::vector<float> directions;
        std::ranges::transform(part_of(trained.directions, set, n_sets), std::back_inserter(directions), half_to_float);
        const auto space = std::make_shared<const LatentSpace>(directions, n_joint, trained.dim, bits, unbias_of(side));
        for (size_t head = 0; head < n_joint; ++head) {
            choice.heads.push_back(std::make_shared<const LatentCodec>(space, head, before_rope));
        }
    }
    choice.codec = choice.heads[0];
    if (trained.heldout_error > 0.0F) {
        const double rounding = bits == LatentSpace::kHalfBits ? 0.0 : ScalarCodec::expected_loss(bits);
        choice.expected_error = std::sqrt(trained.heldout_error * trained.heldout_error + static_cast<float>(rounding));
    }
    return choice;
}

CodecChoice::LayerChoice CodecChoice::choose_layer(const LayerGeometry& geometry, uint32_t layer, bool before_rope,
                                                   LayerArtifact* trained) {
    if (const auto known = made_.find(layer); known != made_.end()) {
        return known->second;
    }
    LayerChoice choice;
    if (latents_) {
        choice = {latent_side(Side::kK, trained->k, geometry.n_head_kv, before_rope),
                  latent_side(Side::kV, trained->v, geometry.n_head_kv, false)};
    } else if (const auto planned = plan_.find(layer); planned != plan_.end()) {
        choice = {planned_side(Side::kK, planned->second.k, trained->k, before_rope),
                  planned_side(Side::kV, planned->second.v, trained->v, false)};
    } else {
        choice = {
            choose_side(Side::kK, geometry.dim_k, trained ? &trained->k : nullptr, options_.s_k, options_.bits_k),
            choose_side(Side::kV, geometry.dim_v, trained ? &trained->v : nullptr, options_.s_v, options_.bits_v)};
    }
    if (trained != nullptr && options_.adaptive == 0) {  // adaptive codecs belong to one cache
        made_[layer] = choice;
        for (SideArtifact* side : {&trained->k, &trained->v}) {  // the codecs have their own
            side->atoms = {};
            side->basis = {};
            side->directions = {};
        }
    }
    return choice;
}

std::optional<EvictionSettings> CodecChoice::eviction(size_t layer, size_t n_layers) const {
    EvictionSettings settings{EvictionSettings::Method::kH2o, budget_, options_.sinks, layer, n_layers};
    switch (options_.codec) {
        case Options::CodecChoice::kH2o:
            return settings;
        case Options::CodecChoice::kSnapKv:
            settings.method = EvictionSettings::Method::kSnapKv;
            return settings;
        case Options::CodecChoice::kPyramidKv:
            settings.method = EvictionSettings::Method::kPyramidKv;
            return settings;
        default:
            return std::nullopt;
    }
}

CodecChoice::Choice CodecChoice::choose(const LayerFacts& facts) {
    const std::lock_guard lock(mutex_);
    const LayerGeometry& g = facts.geometry;
    if (options_.is_baseline()) {
        return choose_baseline(g);
    }
    try {
        plan(facts);
    } catch (const Error& error) {
        return {{}, error.what()};
    }
    const bool rotated = facts.k_origin.rotation == RowOrigin::Rotation::kKnown;
    const bool opaque = facts.k_origin.rotation == RowOrigin::Rotation::kUnknown;
    const RopeParams rope = rotated ? facts.k_origin.rope : RopeParams{};
    LayerArtifact* trained = nullptr;
    if (artifact_) {
        const auto found = std::find_if(artifact_->layers.begin(), artifact_->layers.end(),
                                        [&](const LayerArtifact& layer) { return layer.layer == facts.layer; });
        if (found == artifact_->layers.end()) {
            return {{}, "the artifact has nothing for it"};
        }
        if (found->k.dim != g.dim_k || found->v.dim != g.dim_v || found->n_head_kv != g.n_head_kv) {
            return {{},
                    fmt::format("the artifact was trained for {} KV heads of {}/{}, the model has {} of {}/{}",
                                found->n_head_kv, found->k.dim, found->v.dim, g.n_head_kv, g.dim_k, g.dim_v)};
        }
        if (!opaque && artifact_->kind == Artifact::Kind::kDictionary && found->rope != rope) {
            return {{}, "its RoPE differs from the one that the artifact was trained with"};
        }
        trained = &*found;
    }
    const bool has_k_mean = trained != nullptr ? has_nonzero(trained->k.mean) : has_nonzero(facts.k_origin.bias);
    const auto planned = plan_.find(facts.layer);
    const bool directed = latents_ || (trained != nullptr && planned != plan_.end() && !planned->second.k.scalar_bits);
    if (opaque && (has_k_mean || directed)) {
        return {{}, "its keys, or their mean, would have to be turned back under a RoPE that kvcodec does not know"};
    }
    try {
        Choice choice;
        LayerCodecs codecs;
        codecs.v_mean = trained ? trained->v.mean : facts.v_origin.bias;
        codecs.rope = Rope(rope, g.dim_k);
        const bool before_rope = directed && codecs.rope.rotates();
        if (before_rope) {
            codecs.k_plain_mean = trained->k.mean;
            codecs.rope_tables = tables(codecs.rope);
        } else if (has_k_mean) {
            codecs.k_mean =
                RotatingMean(tables(codecs.rope), trained ? trained->k.mean : facts.k_origin.bias, g.n_head_kv);
        }
        const LayerChoice chosen = choose_layer(g, facts.layer, before_rope, trained);
        codecs.k = chosen.k.codec;
        codecs.v = chosen.v.codec;
        codecs.k_heads = chosen.k.heads;
        codecs.v_heads = chosen.v.heads;
        choice.expected_error_k = chosen.k.expected_error;
        choice.expected_error_v = chosen.v.expected_error;
        const auto bytes_of = [](const Codec& all, const std::vector<std::shared_ptr<const Codec>>& heads) {
            return heads.empty() ? all.fixed_bytes()
                                 : std::accumulate(heads.begin(), heads.end(), size_t{0},
                                                   [](size_t sum, const auto& c) { return sum + c->fixed_bytes(); });
        };
        choice.fixed_bytes = bytes_of(*codecs.k, codecs.k_heads) + bytes_of(*codecs.v, codecs.v_heads) +
                             codecs.k_mean.bytes() +
                             (codecs.k_plain_mean.size() + codecs.v_mean.size()) * sizeof(float);
        choice.trained = trained != nullptr;
        choice.own_mean_k = trained != nullptr && is_mean_of(trained->k.mean, facts.k_origin.bias);
        choice.own_mean_v = trained != nullptr && is_mean_of(trained->v.mean, facts.v_origin.bias);
        choice.codecs = std::move(codecs);
        return choice;
    } catch (const Error& error) {
        return {{}, error.what()};
    }
}

}  // namespace kvcodec::host
