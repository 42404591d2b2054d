// From an artifact and a budget to a codec for K and V of each layer: the budget solver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/options.h"

namespace kvcodec {

/// How one side of a layer is coded.
struct SidePlan {
    std::optional<uint32_t> scalar_bits;  ///< by the scalar codec; nothing: by the transform
    size_t code_bytes = 0;                ///< of one code
    size_t n_codes = 0;                   ///< of a token: one for each head, or for each set of joint heads
    double loss = 0;                      ///< expected; see SideArtifact::basis

    size_t bytes() const { return n_codes * code_bytes; }
};

struct LayerPlan {
    SidePlan k;
    SidePlan v;
};

constexpr double kDefaultBudget = 0.2;

/// Whether codes of vectors of this length are no larger than their share of f16.
bool fits_budget(size_t code_bytes, double budget, size_t dim);

/// The cache that a budget in bytes is for.
struct CacheSize {
    size_t f16_bytes = 0;     ///< of one token's keys and values
    size_t dense_tokens = 0;  ///< most tokens that stay f16
    size_t fixed_bytes = 0;   ///< beside the tokens
};

/// The budget as code bytes per f16 byte: options.budget, or what options.size_budget comes to, or the default of 20 %.
/// Throws Error where nothing is left for codes.
double budget_share(const Options& options, const CacheSize& cache);

/// Bytes that the codecs of a plan, or of latents, and the means keep in memory.
size_t planned_fixed_bytes(const Artifact& artifact, const std::map<uint32_t, LayerPlan>& plan);

/// Whether the options leave it to plan_budget() how this artifact's layers are coded: with codec=scalar and transform,
/// and with auto unless it asks for something of the dictionary or needs one to fit the budget.
/// Artifacts of latents are with codec=scalar only.
bool is_planned(const Artifact& artifact, const Options& options, double budget);

/// Shares out the bytes of a token, `budget` of its f16 bytes, so that the sum of expected losses, each times how
/// sensitive the model is to it (SideArtifact::sensitivity), is least. codec=scalar: whole bits. codec=transform: keys
/// by the transform, values by whichever loses less, where the scalar codec, which is faster, counts as losing a tenth
/// less. codec=auto: scalar from 3 bits an element on, below that as transform. bits_k and bits_v fix a side.
/// By layer, those that options.layers names. Throws Error where a transform is asked for and the artifact has no
/// directions.
std::map<uint32_t, LayerPlan> plan_budget(const Artifact& artifact, const Options& options, double budget);

/// Bits of a latent, in all layers.
struct LatentBits {
    uint32_t k = 0;
    uint32_t v = 0;
};

/// Bytes of a token's codes in one layer, as latents.
size_t latent_bytes(const LayerArtifact& layer, const LatentBits& bits);
/// Whether the options leave layers to be coded as this artifact's latents.
bool takes_latents(const Artifact& artifact, const Options& options);
/// The most bits, 16 or those of the scalar codec, with which the latents of the layers that options.layers names fit
/// `budget`; the same for K and V but where bits_k or bits_v fix a side. Throws Error where none do.
LatentBits latent_bits(const Artifact& artifact, const Options& options, double budget);

struct BudgetPlan {
    double share = 0;                      ///< the budget, code bytes per f16 byte
    std::map<uint32_t, LayerPlan> layers;  ///< of layers that plan_budget() decides on; empty where it does not
    std::optional<LatentBits> latents;     ///< where layers are coded as latents
};

/// What a budget comes to and what it is spent on. artifact may be null. A budget of the whole cache is
/// settled twice, because what tables take depends on the plan; cache.fixed_bytes counts the first time only. Throws
/// Error.
BudgetPlan settle_budget(const Artifact* artifact, const Options& options, CacheSize cache);

}  // namespace kvcodec
