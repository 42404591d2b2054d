#include "kvcodec/plan/budget_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/codec/scalar/scalar_codec.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/plan/allocation.h"

namespace kvcodec {

namespace {

constexpr size_t kFewestTransformBytes = 2;
// The scalar codec reads faster: it is taken unless it loses clearly more.
constexpr double kScalarBias = 0.9;

bool has_directions(const LayerArtifact& layer) {
    return !layer.k.variance.empty() && !layer.v.variance.empty();
}

bool each_side_fits(const Artifact& artifact, const Options& options, double budget, uint32_t bits) {
    return std::ranges::all_of(artifact.layers, [&](const LayerArtifact& layer) {
        return !options.takes_layer(layer.layer) ||
               (fits_budget(ScalarCodec::bytes_of(layer.k.dim, bits), budget, layer.k.dim) &&
                fits_budget(ScalarCodec::bytes_of(layer.v.dim, bits), budget, layer.v.dim));
    });
}

// Whether codec=auto is asked for what only the dictionary or fixed bits can give.
bool asks_for_more(const Options& options) {
    const Options defaults;
    return options.s_k || options.s_v || options.bits_k || options.bits_v || options.relative_error_k != 0.0F ||
           options.relative_error_v != 0.0F || options.coefficients != defaults.coefficients ||
           options.layout != defaults.layout;
}

bool takes_transform(const Artifact& artifact, const Options& options, double budget) {
    return options.codec == Options::CodecChoice::kTransform ||
           (options.codec == Options::CodecChoice::kAuto && !each_side_fits(artifact, options, budget, 3) &&
            std::ranges::all_of(artifact.layers, has_directions));
}

// Share of the variance of all heads that transform codes of each size lose, from kFewestTransformBytes on.
std::vector<double> transform_losses(const SideArtifact& side) {
    const size_t width = side.width();
    std::vector<double> losses(TransformCodec::max_code_bytes(width) + 1 - kFewestTransformBytes);
    double total = 0;
    for (size_t first = 0; first < side.variance.size(); first += width) {
        const std::span<const float> variance = std::span(side.variance).subspan(first, width);
        const double energy = std::accumulate(variance.begin(), variance.end(), 0.0);
        total += energy;
        for (size_t i = 0; i < losses.size(); ++i) {
            losses[i] += energy * TransformCodec::expected_loss(variance, kFewestTransformBytes + i);
        }
    }
    for (double& loss : losses) {
        loss = total == 0 ? 0 : loss / total;
    }
    return losses;
}

bool suits_transform(const SideArtifact& side) {
    return side.dim % 16 == 0 && side.width() <= TransformFormat::kMaxDim;
}

// One side of one layer: all that it may be coded by.
struct Side {
    const SideArtifact* artifact = nullptr;
    size_t n_heads = 0;
    bool scalar = false;
    bool transform = false;
    std::optional<uint32_t> bits;  // asked for

    std::vector<SidePlan> plans() const {
        std::vector<SidePlan> plans;
        for (const uint32_t candidate : ScalarCodec::kBits) {
            if (scalar && candidate == bits.value_or(candidate)) {
                plans.push_back({candidate, ScalarCodec::bytes_of(artifact->dim, candidate), n_heads,
                                 ScalarCodec::expected_loss(candidate) * artifact->loss_of_noise});
            }
        }
        if (transform) {
            const std::vector<double> losses = transform_losses(*artifact);
            for (size_t i = 0; i < losses.size(); ++i) {
                const size_t code_bytes = kFewestTransformBytes + i;
                if (!bits || code_bytes == ScalarCodec::bytes_of(artifact->width(), *bits)) {
                    plans.push_back({std::nullopt, code_bytes, n_heads / artifact->joint_heads, losses[i]});
                }
            }
        }
        return plans;
    }
};

}  // namespace

bool fits_budget(size_t code_bytes, double budget, size_t dim) {
    return static_cast<double>(code_bytes) <= budget * static_cast<double>(dim * sizeof(uint16_t)) + 1e-9;
}

double budget_share(const Options& options, const CacheSize& cache) {
    if (!options.size_budget) {
        return options.budget.value_or(kDefaultBudget);
    }
    const SizeBudget& budget = *options.size_budget;
    const auto f16 = static_cast<double>(cache.f16_bytes);
    if (budget.tokens == 0) {
        return std::min(1.0, budget.bytes / f16);
    }
    const auto dense = static_cast<double>(std::min<size_t>(cache.dense_tokens, budget.tokens));
    const double left = budget.bytes - dense * f16 - static_cast<double>(cache.fixed_bytes);
    if (left <= 0) {
        throw Error(
            fmt::format("a budget of {:.1f} MiB is not enough: the window, the sinks and tables take {:.1f} MiB",
                        budget.bytes / 0x1p20, (budget.bytes - left) / 0x1p20));
    }
    return std::min(1.0, left / (f16 * budget.tokens));  // dense tokens have room for their codes, too
}

size_t planned_fixed_bytes(const Artifact& artifact, const std::map<uint32_t, LayerPlan>& plan) {
    size_t bytes = 0;
    for (const LayerArtifact& layer : artifact.layers) {
        const auto planned = plan.find(layer.layer);
        for (const SideArtifact* side : {&layer.k, &layer.v}) {
            bytes += (side->mean.size() + (plan.empty() ? side->directions.size() : 0)) * sizeof(float);
            if (planned != plan.end() && !(side == &layer.k ? planned->second.k : planned->second.v).scalar_bits) {
                // There in 16 bits, back in 8.
                bytes += layer.n_head_kv * side->dim * side->width() * (sizeof(int16_t) + sizeof(int8_t));
            }
        }
    }
    return bytes;
}

bool is_planned(const Artifact& artifact, const Options& options, double budget) {
    switch (options.codec) {
        case Options::CodecChoice::kScalar:
        case Options::CodecChoice::kTransform:
            return true;
        case Options::CodecChoice::kAuto:
            return artifact.kind != Artifact::Kind::kLatent && !asks_for_more(options) &&
                   (takes_transform(artifact, options, budget) || each_side_fits(artifact, options, budget, 2));
        default:
            return false;
    }
}

std::map<uint32_t, LayerPlan> plan_budget(const Artifact& artifact, const Options& options, double budget) {
    const bool transform = takes_transform(artifact, options, budget);
    std::vector<std::vector<SidePlan>> plans;
    std::vector<std::vector<Offer>> offers;
    std::vector<uint32_t> layers;
    size_t f16_bytes = 0;
    const bool measured = std::ranges::all_of(
        artifact.layers, [](const LayerArtifact& layer) { return layer.k.sensitivity > 0 && layer.v.sensitivity > 0; });
    for (const LayerArtifact& layer : artifact.layers) {
        if (!options.takes_layer(layer.layer)) {
            continue;
        }
        if (transform && !has_directions(layer)) {
            throw Error("the artifact has no directions for it; make a new one with `kvcodec train`");
        }
        layers.push_back(layer.layer);
        for (const SideArtifact* side : {&layer.k, &layer.v}) {
            const bool is_k = side == &layer.k;
            const bool suits = transform && suits_transform(*side);
            const Side choice{side, layer.n_head_kv, !(suits && is_k), suits && (is_k || !options.bits_v),
                              is_k ? options.bits_k : options.bits_v};
            plans.push_back(choice.plans());
            std::vector<Offer>& all = offers.emplace_back();
            for (const SidePlan& plan : plans.back()) {
                const double bias = plan.scalar_bits && choice.transform ? kScalarBias : 1.0;
                all.push_back({plan.bytes(), plan.loss * bias * (measured ? side->sensitivity : 1.0)});
            }
        }
        f16_bytes += layer.f16_bytes();
    }
    const std::vector<size_t> chosen =
        allocate(offers, static_cast<size_t>(budget * static_cast<double>(f16_bytes) + 1e-9));
    std::map<uint32_t, LayerPlan> planned;
    for (size_t i = 0; i < layers.size(); ++i) {
        planned[layers[i]] = {plans[2 * i][chosen[2 * i]], plans[2 * i + 1][chosen[2 * i + 1]]};
    }
    return planned;
}

size_t latent_bytes(const LayerArtifact& layer, const LatentBits& bits) {
    const auto of = [&](const SideArtifact& side, uint32_t n_bits) {
        return layer.n_head_kv / side.joint_heads * LatentSpace::code_bytes(side.rank, n_bits);
    };
    return of(layer.k, bits.k) + of(layer.v, bits.v);
}

bool takes_latents(const Artifact& artifact, const Options& options) {
    return artifact.kind == Artifact::Kind::kLatent &&
           (options.codec == Options::CodecChoice::kAuto || options.codec == Options::CodecChoice::kLatent);
}

LatentBits latent_bits(const Artifact& artifact, const Options& options, double budget) {
    const auto rate = [&](const LatentBits& bits) {
        size_t coded = 0, f16 = 0;
        for (const LayerArtifact& layer : artifact.layers) {
            if (options.takes_layer(layer.layer)) {
                coded += latent_bytes(layer, bits);
                f16 += layer.f16_bytes();
            }
        }
        return static_cast<double>(coded) / static_cast<double>(std::max<size_t>(f16, 1));
    };
    const bool suits_scalar = std::ranges::all_of(artifact.layers, [](const LayerArtifact& layer) {
        return std::max(layer.k.rank, layer.v.rank) <= ScalarFormat::kMaxDim;
    });
    const auto all = std::span(LatentSpace::kBits).last(suits_scalar ? LatentSpace::kBits.size() : 1);
    std::optional<LatentBits> best;
    for (const uint32_t bits : all) {
        const LatentBits candidate{options.bits_k.value_or(bits), options.bits_v.value_or(bits)};
        if ((options.bits_k && options.bits_v) || rate(candidate) <= budget + 1e-9) {
            best = candidate;
        }
    }
    if (!best) {
        const LatentBits fewest{options.bits_k.value_or(all.front()), options.bits_v.value_or(all.front())};
        throw Error(
            fmt::format("a budget of {:.4g} % is less than the {:.1f} % that these latents take with {} bits of K and "
                        "{} of V; give more, or make an artifact with `kvcodec lowrank` of a lower --keep{}",
                        100 * budget, 100 * rate(fewest), fewest.k, fewest.v,
                        suits_scalar ? "" : " or with --per-head: ranks above 1024 have f16 latents only"));
    }
    return *best;
}

BudgetPlan settle_budget(const Artifact* artifact, const Options& options, CacheSize cache) {
    const auto settle = [&] {
        BudgetPlan plan{budget_share(options, cache), {}, {}};
        if (artifact != nullptr && takes_latents(*artifact, options)) {
            plan.latents = latent_bits(*artifact, options, plan.share);
        } else if (artifact != nullptr && is_planned(*artifact, options, plan.share)) {
            plan.layers = plan_budget(*artifact, options, plan.share);
        }
        return plan;
    };
    BudgetPlan plan = settle();
    if (artifact != nullptr && options.size_budget) {
        cache.fixed_bytes = planned_fixed_bytes(*artifact, plan.layers);
        plan = settle();
    }
    return plan;
}

}  // namespace kvcodec
