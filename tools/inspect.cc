// `kvcodec inspect`: what an artifact holds and how many bytes a token takes with it.
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/codec/dictionary/packing.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/options.h"
#include "kvcodec/plan/budget_plan.h"
#include "tools/commands.h"

namespace kvcodec {

namespace {

constexpr double kConcentrated = 0.9;
constexpr std::array<size_t, 6> kSparsities = {4, 8, 12, 16, 24, 32};

struct InspectOptions {
    std::string path;
    std::string plan;  // text of KVCODEC
    bool json = false;
};

/// Bytes of one token's K and V in all layers of the artifact.
struct TokenBytes {
    uint64_t f16 = 0;
    uint64_t packed = 0;     ///< 4-bit coefficients
    uint64_t published = 0;  ///< the published layout

    double packed_rate() const { return static_cast<double>(packed) / static_cast<double>(f16); }
    double published_rate() const { return static_cast<double>(published) / static_cast<double>(f16); }
};

/// The same of all layers as latents of so many bits.
uint64_t latent_bytes(const Artifact& artifact, uint32_t bits) {
    uint64_t bytes = 0;
    for (const LayerArtifact& layer : artifact.layers) {
        bytes += latent_bytes(layer, {bits, bits});
    }
    return bytes;
}

uint64_t f16_bytes(const Artifact& artifact) {
    uint64_t bytes = 0;
    for (const LayerArtifact& layer : artifact.layers) {
        bytes += layer.f16_bytes();
    }
    return bytes;
}

TokenBytes token_bytes(const Artifact& artifact, size_t sparsity) {
    TokenBytes bytes;
    bytes.f16 = f16_bytes(artifact);
    for (const LayerArtifact& layer : artifact.layers) {
        for (const SideArtifact* side : {&layer.k, &layer.v}) {
            const auto code_bytes = [&](CoefficientFormat format, CodeLayout layout) {
                return Packing::code_bytes(side->n_atoms, sparsity, format, layout);
            };
            bytes.packed += layer.n_head_kv * code_bytes(CoefficientFormat::kSigned4, CodeLayout::kPacked);
            bytes.published += layer.n_head_kv * code_bytes(CoefficientFormat::kFp8, CodeLayout::kPublished);
        }
    }
    return bytes;
}

/// The share of K's dimensions, along its directions before RoPE, that carry kConcentrated of the variance, as
/// weighted: the mean of the heads, or of the sets of joint ones. Nothing if the artifact has no directions.
std::optional<double> concentration(const LayerArtifact& layer) {
    const std::vector<float>& variance = layer.k.variance;
    if (variance.empty()) {
        return std::nullopt;
    }
    size_t n_needed = 0;
    const auto width = static_cast<std::ptrdiff_t>(layer.k.width());
    for (auto set = variance.begin(); set != variance.end(); set += width) {
        double missing = kConcentrated * std::accumulate(set, set + width, 0.0);
        for (auto along = set; missing > 0.0 && along != set + width; ++along, ++n_needed) {
            missing -= *along;
        }
    }
    return static_cast<double>(n_needed) / static_cast<double>(variance.size());
}

nlohmann::json latent_rates(const Artifact& artifact) {
    nlohmann::json rates = nlohmann::json::array();
    for (const uint32_t bits : LatentSpace::kBits) {
        const uint64_t bytes = latent_bytes(artifact, bits);
        rates.push_back({{"bits", bits},
                         {"bytes_per_token", bytes},
                         {"rate", static_cast<double>(bytes) / static_cast<double>(f16_bytes(artifact))}});
    }
    return rates;
}

nlohmann::json dictionary_rates(const Artifact& artifact) {
    nlohmann::json rates = nlohmann::json::array();
    for (const size_t sparsity : kSparsities) {
        const TokenBytes bytes = token_bytes(artifact, sparsity);
        rates.push_back({{"s", sparsity},
                         {"packed_bytes_per_token", bytes.packed},
                         {"packed_rate", bytes.packed_rate()},
                         {"published_bytes_per_token", bytes.published},
                         {"published_rate", bytes.published_rate()}});
    }
    return rates;
}

nlohmann::json to_json(const Artifact& artifact, uint64_t file_bytes) {
    const bool latent = artifact.kind == Artifact::Kind::kLatent;
    const auto side_json = [&](const SideArtifact& side) {
        if (latent) {
            return nlohmann::json{{"dim", side.dim}, {"rank", side.rank}, {"joint_heads", side.joint_heads}};
        }
        return nlohmann::json{{"dim", side.dim}, {"n_atoms", side.n_atoms}, {"heldout_error", side.heldout_error}};
    };
    nlohmann::json layers = nlohmann::json::array();
    for (const LayerArtifact& layer : artifact.layers) {
        nlohmann::json k = side_json(layer.k);
        if (const auto share = concentration(layer)) {
            k["share_of_dims_with_90_percent_of_variance"] = *share;
        }
        layers.push_back({{"layer", layer.layer}, {"n_head_kv", layer.n_head_kv}, {"k", k}, {"v", side_json(layer.v)}});
    }
    return {{"model",
             {{"name", artifact.model_name},
              {"architecture", artifact.architecture},
              {"fingerprint", artifact.model_fingerprint}}},
            {"training",
             {{"source", artifact.training_source},
              {"tokens", artifact.training_tokens},
              {"s", artifact.training_sparsity}}},
            {"file_bytes", file_bytes},
            {"f16_bytes_per_token", f16_bytes(artifact)},
            {"layers", layers},
            {"rates", latent ? latent_rates(artifact) : dictionary_rates(artifact)}};
}

void print_ranks(const Artifact& artifact) {
    fmt::print("\n{:>5} {:>8} | {:>14} {:>8} | {:>14} {:>8}\n", "layer", "KV heads", "K rank", "together", "V rank",
               "together");
    const auto rank = [](const SideArtifact& side) { return fmt::format("{} of {}", side.rank, side.width()); };
    for (const LayerArtifact& layer : artifact.layers) {
        fmt::print("{:>5} {:>8} | {:>14} {:>8} | {:>14} {:>8}\n", layer.layer, layer.n_head_kv, rank(layer.k),
                   layer.k.joint_heads, rank(layer.v), layer.v.joint_heads);
    }
    fmt::print("\ncoded bytes per token, K and V of these layers (f16: {})\n{:>5} {:>8} {:>7}\n", f16_bytes(artifact),
               "bits", "bytes", "rate");
    for (const uint32_t bits : LatentSpace::kBits) {
        const uint64_t bytes = latent_bytes(artifact, bits);
        fmt::print("{:>5} {:>8} {:>6.1f}%\n", bits, bytes,
                   100.0 * static_cast<double>(bytes) / static_cast<double>(f16_bytes(artifact)));
    }
}

void print_text(const Artifact& artifact, uint64_t file_bytes) {
    fmt::print("model        {} ({})\n", artifact.model_name, artifact.architecture);
    fmt::print("fingerprint  {}\n", artifact.model_fingerprint);
    const bool latent = artifact.kind == Artifact::Kind::kLatent;
    fmt::print("{} {}{}\n", latent ? "low ranks of" : "trained on  ", artifact.training_source,
               latent && artifact.training_tokens == 0
                   ? ""
                   : fmt::format(": {} tokens{}", artifact.training_tokens,
                                 latent ? "" : fmt::format(" at s={}", artifact.training_sparsity)));
    fmt::print("file         {} bytes, {} layers\n", file_bytes, artifact.layers.size());
    if (latent) {
        print_ranks(artifact);
        return;
    }

    fmt::print("\n{:>5} {:>8} | {:>5} {:>6} {:>14} {:>17} | {:>5} {:>6} {:>14}\n", "layer", "KV heads", "K dim",
               "atoms", "held-out error", "90 % variance in", "V dim", "atoms", "held-out error");
    for (const LayerArtifact& layer : artifact.layers) {
        const auto share = concentration(layer);
        fmt::print("{:>5} {:>8} | {:>5} {:>6} {:>14.4f} {:>17} | {:>5} {:>6} {:>14.4f}\n", layer.layer, layer.n_head_kv,
                   layer.k.dim, layer.k.n_atoms, layer.k.heldout_error,
                   share ? fmt::format("{:.0f} % of dims", 100 * *share) : "-", layer.v.dim, layer.v.n_atoms,
                   layer.v.heldout_error);
    }

    fmt::print("\ncoded bytes per token, K and V of these layers (f16: {})\n", f16_bytes(artifact));
    fmt::print("{:>5} {:>16} {:>7} {:>18} {:>7}\n", "s", "packed q4", "rate", "published fp8", "rate");
    for (const size_t sparsity : kSparsities) {
        const TokenBytes bytes = token_bytes(artifact, sparsity);
        fmt::print("{:>5} {:>16} {:>6.1f}% {:>18} {:>6.1f}%\n", sparsity, bytes.packed, 100 * bytes.packed_rate(),
                   bytes.published, 100 * bytes.published_rate());
    }
}

/// What plan_budget() makes of these options, layer by layer.
void print_plan(const Artifact& artifact, const std::string& text) {
    const Options options = parse_options(text);
    const BudgetPlan settled =
        settle_budget(&artifact, options, {f16_bytes(artifact), size_t{options.window} + options.sinks, 0});
    if (settled.latents) {
        fmt::print("latents of {} bits in K and {} in V\n", settled.latents->k, settled.latents->v);
        return;
    }
    if (options.codec == Options::CodecChoice::kLatent) {
        throw Error("the artifact has no latents; make one with `kvcodec lowrank -o FILE`");
    }
    const auto& plan = settled.layers;
    if (plan.empty()) {
        throw Error(fmt::format("with '{}' all layers are coded alike, nothing is planned", text));
    }
    const auto describe = [&](const SidePlan& side, size_t elements) {
        return fmt::format("{:<9} {:>5.2f} {:>9.4f}", side.scalar_bits ? "scalar" : "transform",
                           8.0 * static_cast<double>(side.bytes()) / static_cast<double>(elements), side.loss);
    };
    fmt::print("{:>5} | {:>11} {:<9} {:>5} {:>9} | {:>11} {:<9} {:>5} {:>9}\n", "layer", "sensitivity", "K", "bits",
               "loss", "sensitivity", "V", "bits", "loss");
    size_t bytes = 0;
    size_t all_f16 = 0;
    for (const LayerArtifact& layer : artifact.layers) {
        const auto planned = plan.find(layer.layer);
        if (planned == plan.end()) {
            continue;
        }
        const auto& [k, v] = planned->second;
        fmt::print("{:>5} | {:>11.4f} {} | {:>11.4f} {}\n", layer.layer, layer.k.sensitivity,
                   describe(k, size_t{layer.n_head_kv} * layer.k.dim), layer.v.sensitivity,
                   describe(v, size_t{layer.n_head_kv} * layer.v.dim));
        bytes += k.bytes() + v.bytes();
        all_f16 += layer.f16_bytes();
    }
    fmt::print(
        "{} of {} bytes of a token, {:.1f} %. Loss: expected share of the variance, as readers weigh it. Bytes go "
        "where loss times\n"
        "sensitivity (0: not measured, all alike) falls most.\n",
        bytes, all_f16, 100.0 * static_cast<double>(bytes) / static_cast<double>(all_f16));
}

void inspect(const InspectOptions& options) {
    const Artifact artifact = read_artifact(options.path);
    if (!options.plan.empty()) {
        print_plan(artifact, options.plan);
        return;
    }
    const uint64_t file_bytes = std::filesystem::file_size(options.path);
    if (options.json) {
        // Names come from the model file and need not be valid UTF-8.
        fmt::print("{}\n", to_json(artifact, file_bytes).dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    } else {
        print_text(artifact, file_bytes);
    }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
    auto options = std::make_shared<InspectOptions>();
    CLI::App* command = app.add_subcommand("inspect", "Show what an artifact holds and its bytes per token");
    command->add_option("FILE", options->path, "The artifact (.kvc.gguf)")->required();
    command
        ->add_option("--plan", options->plan,
                     "Show how these options of KVCODEC, such as budget=15%, share out bytes between layers")
        ->excludes(command->add_flag("--json", options->json, "Print JSON"));
    command->callback([options] { inspect(*options); });
}

}  // namespace kvcodec
