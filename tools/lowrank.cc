// `kvcodec lowrank`: low ranks of a model's K and V projections (LoRC, arXiv 2410.03111): a report, artifacts for a
// cache of latents, and models with projections of low rank.
#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/artifact/temporary_file.h"
#include "kvcodec/codec/latent/latent_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/learn/low_rank.h"
#include "kvcodec/learn/principal_components.h"
#include "kvcodec/plan/allocation.h"
#include "tools/commands.h"
#include "tools/harvest.h"
#include "tools/plugin_path.h"
#include "tools/progress.h"
#include "tools/sensitivity.h"
#include "tools/weights.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMultiple = LatentSpace::kRankMultiple;

enum class Basis : uint8_t {
    kWeights,   ///< singular vectors of the weights, as published
    kWhitened,  ///< of the weights times the root of the inputs' second moments: of what they make of real inputs
    kData,      ///< principal components of keys and values themselves, their mean apart
};

enum class Ranks : uint8_t {
    kProgressive,  ///< by cumulative condition numbers, as published
    kUniform,      ///< the same in all layers
    kMeasured,     ///< by what predictions lose, K and V of each layer apart
};

struct LowRankOptions {
    std::string model;
    std::string output;
    std::string emit_model;
    bool emit_f32 = false;
    std::string keep = "60%";
    std::string keep_k;
    std::string keep_v;
    Ranks ranks = Ranks::kProgressive;
    double steepness = 0.5;
    bool per_head = false;
    Basis basis = Basis::kWeights;
    std::vector<std::string> text_files;
    size_t n_tokens = 4096;
    size_t sensitivity_tokens = 128;
    size_t n_threads = std::max(1U, std::thread::hardware_concurrency());
    uint64_t seed = 0;
};

/// "60%" or "0.6".
double share_of(const std::string& option, const std::string& text) {
    size_t used = 0;
    double value = 0.0;
    try {
        value = std::stod(text, &used);
    } catch (const std::exception&) {
        used = 0;
    }
    const bool percent = used + 1 == text.size() && text.back() == '%';
    value /= percent ? 100.0 : 1.0;
    if (used == 0 || (used != text.size() && !percent) || !(value > 0.0 && value <= 1.0)) {
        throw CLI::ValidationError(option, fmt::format("'{}' is not a share like 60%", text));
    }
    return value;
}

/// K or V of one layer.
struct Side {
    uint32_t layer = 0;
    bool is_k = false;
    Projection projection;
    size_t n_heads = 1;                   ///< that are taken apart; 1: all together
    std::vector<LeftSingular> bases;      ///< [n_heads]
    std::vector<float> mean;              ///< [rows] what is left out of latents: the bias, or the mean of the data
    const HarvestedRows* seen = nullptr;  ///< what the projection makes of real inputs, its bias added; may be null
    size_t rank = 0;                      ///< of each of them
    std::string problem;

    size_t block_rows() const { return projection.n_rows / n_heads; }
    size_t full_rank() const { return std::min(block_rows(), projection.n_columns); }
    double log_condition() const {
        double sum = 0.0;
        for (const LeftSingular& basis : bases) {
            sum += std::log(basis.condition()) / static_cast<double>(n_heads);
        }
        return sum;
    }
    double lost() const {
        double sum = 0.0, all = 0.0;
        for (const LeftSingular& basis : bases) {
            const double energy =
                std::inner_product(basis.values.begin(), basis.values.end(), basis.values.begin(), 0.0);
            sum += energy * basis.lost(rank);
            all += energy;
        }
        return all == 0.0 ? 0.0 : sum / all;
    }
    /// Largest singular value that is left out, over the largest of all: for the weights' own singular vectors a bound
    /// of ||W x - W_r x|| / (||W|| ||x||).
    double bound() const {
        double largest = 0.0, left = 0.0;
        for (const LeftSingular& basis : bases) {
            largest = std::max(largest, basis.values.front());
            left += rank < basis.rows() ? basis.values[rank] * basis.values[rank] : 0.0;
        }
        return largest == 0.0 ? 0.0 : std::sqrt(left) / largest;
    }
};

std::vector<float> weights_of(const GgufTensor& tensor, size_t first_row, size_t n_rows) {
    auto weights = read_rows(tensor, first_row, n_rows);
    if (!weights) {
        throw Error(fmt::format("{} is of a type that cannot be read", tensor.name));
    }
    return *std::move(weights);
}

/// blk.N.attn_k.bias or attn_v.bias, or their part of attn_qkv.bias; zeros if there is none.
std::vector<float> bias_of(const GgufFile& file, const Side& side) {
    std::vector<float> bias(side.projection.n_rows);
    size_t first = 0;
    const GgufTensor* tensor = file.find_tensor(fmt::format("blk.{}.attn_{}.bias", side.layer, side.is_k ? 'k' : 'v'));
    if (tensor == nullptr) {
        tensor = file.find_tensor(fmt::format("blk.{}.attn_qkv.bias", side.layer));
        first = side.projection.first_row;
    }
    if (tensor == nullptr) {
        return bias;
    }
    if (tensor->type != kGgmlF32 || !tensor->bytes || tensor->bytes->size() < (first + bias.size()) * sizeof(float)) {
        throw Error(fmt::format("{} is of an unexpected type or shape", tensor->name));
    }
    std::memcpy(bias.data(), tensor->bytes->data() + first * sizeof(float), bias.size() * sizeof(float));
    return bias;
}

void decompose(const GgufFile& file, Basis basis, Side& side) {
    side.mean = basis == Basis::kData ? side.seen->mean() : bias_of(file, side);
    const size_t rows = side.block_rows(), columns = side.projection.n_columns;
    if (side.seen == nullptr) {
        const Projection& p = side.projection;
        const std::vector<float> weights = weights_of(*p.tensor, p.first_row, p.n_rows);
        for (size_t head = 0; head < side.n_heads; ++head) {
            side.bases.push_back(
                left_singular(std::span(weights).subspan(head * rows * columns, rows * columns), rows, columns));
        }
        return;
    }
    const std::vector<float> residuals = side.seen->residuals(), mean = side.seen->mean();
    std::vector<float> block(side.seen->n_tokens() * rows);
    for (size_t head = 0; head < side.n_heads; ++head) {
        for (size_t i = 0; i < block.size(); ++i) {
            const size_t row = head * rows + i % rows;
            block[i] = residuals[i / rows * side.projection.n_rows + row] + mean[row] - side.mean[row];
        }
        side.bases.push_back(left_singular(second_moments(block, rows), rows));
        side.bases.back().most_rank = side.full_rank();
    }
}

void decompose_all(const GgufFile& file, Basis basis, std::vector<Side>& sides, size_t n_threads) {
    Progress progress("singular values");
    std::atomic<size_t> next = 0, done = 0;
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < std::min(n_threads, sides.size()); ++t) {
        threads.emplace_back([&] {
            for (size_t i = next++; i < sides.size(); i = next++) {
                try {
                    decompose(file, basis, sides[i]);
                } catch (const std::exception& error) {
                    sides[i].problem = error.what();
                }
                progress.update(++done, sides.size());
            }
        });
    }
    threads.clear();
    progress.finish(fmt::format("of {} projections", sides.size()));
    for (const Side& side : sides) {
        if (!side.problem.empty()) {
            throw Error(side.problem);
        }
    }
}

std::vector<Side> find_sides(const GgufFile& file, const ModelInfo& model, const LowRankOptions& options) {
    std::vector<Side> sides;
    for (uint32_t layer = 0; layer < model.n_layer; ++layer) {
        if (model.n_head_kv[layer] == 0) {
            continue;  // recurrent
        }
        for (const bool is_k : {true, false}) {
            Side side{layer,
                      is_k,
                      find_projection(file, model, layer, is_k),
                      options.per_head ? model.n_head_kv[layer] : 1,
                      {},
                      {},
                      nullptr,
                      0,
                      {}};
            if (side.projection.tensor == nullptr) {
                throw Error(
                    fmt::format("{} has no {} projection of a known shape in layer {}; low ranks are for models "
                                "with attn_k and attn_v, or attn_qkv",
                                model.path, is_k ? "K" : "V", layer));
            }
            if (side.full_rank() % kMultiple != 0) {
                throw Error(fmt::format("ranks are multiples of {}, the {} projection of layer {} has {} rows",
                                        kMultiple, is_k ? "K" : "V", layer, side.full_rank()));
            }
            sides.push_back(std::move(side));
        }
    }
    if (sides.empty()) {
        throw Error(fmt::format("{} has no attention layer", model.path));
    }
    return sides;
}

/// Throws Error where keys are normalised after their projection and the options need them as projected.
void check_norms(const GgufFile& file, const LowRankOptions& options, const std::vector<Side>& sides) {
    const auto normalised = std::ranges::find_if(sides, [&](const Side& side) {
        return file.find_tensor(fmt::format("blk.{}.attn_k_norm.weight", side.layer)) != nullptr;
    });
    if (normalised == sides.end()) {
        return;
    }
    if (options.basis == Basis::kWhitened) {
        throw Error(
            "keys are normalised after their projection: --basis whitened cannot see what it makes of inputs; take "
            "--basis data");
    }
    if (options.basis == Basis::kWeights && !options.output.empty()) {
        throw Error(
            "keys are normalised after their projection: singular vectors of its weights are not theirs; take "
            "--basis data");
    }
}

/// What each projection makes of the inputs it meets: keys before RoPE and values. The first tokens of a sequence are
/// left out, as in training.
Harvest see_inputs(const ModelInfo& model, const LowRankOptions& options, std::vector<Side>& sides) {
    size_t most_rows = 0;
    for (const Side& side : sides) {
        most_rows = std::max(most_rows, side.block_rows());
    }
    HarvestOptions harvest_options;
    harvest_options.text_files = options.text_files;
    harvest_options.n_tokens = options.n_tokens;
    harvest_options.n_threads = options.n_threads;
    harvest_options.seed = options.seed;
    Progress progress(options.text_files.empty() ? "sampling text from the model" : "reading text");
    harvest_options.progress = [&](size_t done, size_t total) { progress.update(done, total); };
    Harvester harvester(model, harvest_options);
    if (harvester.available_tokens() < 2 * most_rows) {
        throw Error(
            fmt::format("{} tokens are too few to tell {} directions apart; give at least twice as many with "
                        "--tokens, or more --text",
                        harvester.available_tokens(), most_rows));
    }
    Harvest harvest = harvester.harvest();
    progress.finish(fmt::format("{} tokens", harvest.n_tokens));
    for (Side& side : sides) {
        const auto layer = std::ranges::find(harvest.layers, side.layer, &HarvestedLayer::layer);
        if (layer == harvest.layers.end()) {
            throw Error(fmt::format("this basis needs to see all layers, layer {} was not; take --basis weights{}",
                                    side.layer, harvest.skipped.empty() ? "" : " (" + harvest.skipped.front() + ")"));
        }
        side.seen = side.is_k ? &layer->k : &layer->v;
    }
    return harvest;
}

/// Ranks of K or of V in all layers.
void choose_ranks(std::vector<Side>& sides, const LowRankOptions& options, bool is_k, double keep,
                  std::span<const double> log_condition) {
    std::vector<size_t> full;
    for (const Side& side : sides) {
        if (side.is_k == is_k) {
            full.push_back(side.full_rank());
        }
    }
    const std::vector<size_t> ranks =
        ranks_of(progressive_shares(log_condition, keep, options.steepness), full, kMultiple);
    for (size_t i = is_k ? 0 : 1; i < sides.size(); i += 2) {
        // The same share of all is the same rank in all, though their sum may be nearer with another in some.
        const auto units = std::lround(keep * static_cast<double>(full[i / 2] / kMultiple));
        sides[i].rank =
            options.ranks == Ranks::kUniform ? kMultiple * static_cast<size_t>(std::max(units, 1L)) : ranks[i / 2];
    }
}

/// An artifact of latents with the ranks as they are.
Artifact make_artifact(const ModelInfo& model, const std::vector<Side>& sides, const Harvest& harvest) {
    Artifact artifact;
    artifact.kind = Artifact::Kind::kLatent;
    artifact.model_name = model.name;
    artifact.model_fingerprint = model.fingerprint;
    artifact.architecture = model.architecture;
    artifact.training_source = harvest.source.empty() ? "the model's weights" : harvest.source;
    artifact.training_tokens = harvest.n_tokens;
    for (size_t i = 0; i < sides.size(); i += 2) {
        LayerArtifact layer;
        layer.layer = sides[i].layer;
        layer.n_head_kv = model.n_head_kv[layer.layer];
        for (const Side* side : {&sides[i], &sides[i + 1]}) {
            SideArtifact& to = side->is_k ? layer.k : layer.v;
            to.dim = static_cast<uint32_t>(side->projection.n_rows / layer.n_head_kv);
            to.mean = side->mean;
            to.rank = static_cast<uint32_t>(side->rank);
            to.joint_heads = static_cast<uint32_t>(layer.n_head_kv / side->n_heads);
            to.heldout_error = side->seen == nullptr ? 0.0F : static_cast<float>(std::sqrt(side->lost()));
            for (const LeftSingular& basis : side->bases) {
                std::transform(basis.vectors.begin(),
                               basis.vectors.begin() + static_cast<std::ptrdiff_t>(side->rank * basis.rows()),
                               std::back_inserter(to.directions), float_to_half);
            }
        }
        artifact.layers.push_back(std::move(layer));
    }
    return artifact;
}

/// A file that goes with its owner.
class ScratchFile {
  public:
    explicit ScratchFile(const std::string& name)
        : path_(fs::temp_directory_path() / fmt::format("kvcodec-{}-{}", ::getpid(), name)) {}
    ~ScratchFile() {
        std::error_code ignored;
        fs::remove(path_, ignored);
    }
    ScratchFile(const ScratchFile&) = delete;
    ScratchFile& operator=(const ScratchFile&) = delete;
    std::string path() const { return path_.native(); }

  private:
    fs::path path_;
};

/// Ranks with which the sum of what the sides lose, each times what that costs predictions, is least.
void measure_ranks(const ModelInfo& model, const Harvest& harvest, const LowRankOptions& options, double keep,
                   std::vector<Side>& sides) {
    for (Side& side : sides) {
        side.rank = kMultiple;
    }
    const ScratchFile means("means.gguf");
    Artifact artifact = make_artifact(model, sides, harvest);
    write_artifact(artifact, means.path());
    SensitivityOptions measurement{options.model, find_plugin(""), means.path(), {}, options.n_threads, {}};
    measurement.sequences = sequences_to_measure(harvest, options.sensitivity_tokens);
    if (measurement.sequences.empty()) {
        throw Error("no sequence of 32 tokens to measure with; give --text, or leave out --measured");
    }
    Progress progress("measuring how sensitive layers are");
    measurement.progress = [&](size_t done, size_t total) {
        progress.update(done, total, fmt::format("layer {} of {}", done, total));
    };
    measure_sensitivity(artifact, measurement);
    progress.finish(fmt::format("{} layers", artifact.layers.size()));
    std::vector<std::vector<Offer>> offers;
    size_t all = 0;
    for (size_t i = 0; i < sides.size(); ++i) {
        Side& side = sides[i];
        const LayerArtifact& layer = artifact.layers[i / 2];
        std::vector<Offer>& of_side = offers.emplace_back();
        for (side.rank = kMultiple; side.rank <= side.full_rank(); side.rank += kMultiple) {
            of_side.push_back({side.rank * side.n_heads, side.lost() * (side.is_k ? layer.k : layer.v).sensitivity});
        }
        all += side.projection.n_rows;
    }
    const std::vector<size_t> chosen = allocate(offers, static_cast<size_t>(keep * static_cast<double>(all)));
    for (size_t i = 0; i < sides.size(); ++i) {
        sides[i].rank = kMultiple * (chosen[i] + 1);
    }
}

void print_report(const std::vector<Side>& sides, std::span<const double> log_condition) {
    fmt::print(
        "Condition: largest over smallest singular value, of K and V; cumulative: log10 of the product from the layer "
        "on.\nLost: share of the squared singular values that the rank leaves out; bound: the largest singular value "
        "of "
        "these over the largest of all. With --basis whitened all are of what the projections make of the "
        "text, with --basis data of that without its mean.\n\n{:>5} {:>10} {:>10} {:>10} | {:>11} {:>6} {:>6} | {:>11} "
        "{:>6} {:>6}\n",
        "layer", "K", "V", "cumulative", "K rank", "lost", "bound", "V rank", "lost", "bound");
    double left = std::accumulate(log_condition.begin(), log_condition.end(), 0.0);
    size_t kept = 0, all = 0;
    for (size_t i = 0; i < sides.size(); i += 2) {
        const Side &k = sides[i], &v = sides[i + 1];
        const auto rank = [](const Side& side) { return fmt::format("{} of {}", side.rank, side.full_rank()); };
        fmt::print("{:>5} {:>10.1f} {:>10.1f} {:>10.1f} | {:>11} {:>6.3f} {:>6.3f} | {:>11} {:>6.3f} {:>6.3f}\n",
                   k.layer, std::exp(k.log_condition()), std::exp(v.log_condition()), left / std::log(10.0), rank(k),
                   k.lost(), k.bound(), rank(v), v.lost(), v.bound());
        left -= log_condition[i / 2];
        for (const Side* side : {&k, &v}) {
            kept += side->rank * side->n_heads;
            all += side->projection.n_rows;
        }
    }
    fmt::print("{} of {} values of a token kept, {:.1f} %\n", kept, all,
               100.0 * static_cast<double>(kept) / static_cast<double>(all));
}

// ---- the model with projections of low rank ------------------------------------------------------------------------

struct GgufDeleter {
    void operator()(gguf_context* context) const { gguf_free(context); }
};
using GgufContext = std::unique_ptr<gguf_context, GgufDeleter>;

/// All rows of a tensor as floats, those of the sides projected on their bases.
std::vector<float> truncated(const GgufTensor& tensor, std::span<const Side* const> sides) {
    const auto columns = static_cast<size_t>(tensor.dims[0]);
    std::vector<float> weights = weights_of(tensor, 0, static_cast<size_t>(tensor.dims[1]));
    for (const Side* side : sides) {
        const size_t size = side->block_rows() * columns;
        for (size_t head = 0; head < side->n_heads && side->rank < side->full_rank(); ++head) {
            const auto block = std::span(weights).subspan(side->projection.first_row * columns + head * size, size);
            project(side->bases[head], side->rank, block, columns, block);
        }
    }
    return weights;
}

/// all_f32: of every matrix, not only those that are truncated.
void emit_model(const GgufFile& file, const std::vector<Side>& sides, bool all_f32, TemporaryFile& out) {
    std::map<std::string_view, std::vector<const Side*>> changed;  // by tensor
    for (const GgufTensor& tensor : file.tensors()) {
        if (all_f32 && tensor.n_dims == 2 && tensor.type != kGgmlF32) {
            changed[tensor.name];
        }
    }
    for (const Side& side : sides) {
        changed[side.projection.tensor->name].push_back(&side);
    }
    ggml_context* tensors = nullptr;
    const GgufContext source(gguf_init_from_file(file.path().c_str(), {true, &tensors}));
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(tensors, ggml_free);
    if (source == nullptr) {
        throw Error(fmt::format("{} cannot be read", file.path()));
    }
    const GgufContext target(gguf_init_empty());
    gguf_set_kv(target.get(), source.get());
    gguf_remove_key(target.get(), "general.alignment");  // offsets below are for ggml's own
    for (ggml_tensor* t = ggml_get_first_tensor(tensors); t != nullptr; t = ggml_get_next_tensor(tensors, t)) {
        gguf_add_tensor(target.get(), t);
    }
    for (const auto& [name, of_tensor] : changed) {
        gguf_set_tensor_type(target.get(), std::string(name).c_str(), GGML_TYPE_F32);
    }
    std::string head(gguf_get_meta_size(target.get()), '\0');
    gguf_get_meta_data(target.get(), head.data());
    out.write(head);
    Progress progress("writing");
    const size_t alignment = gguf_get_alignment(target.get());
    const int64_t n_tensors = gguf_get_n_tensors(target.get());
    for (int64_t i = 0; i < n_tensors; ++i) {
        const GgufTensor* tensor = file.find_tensor(gguf_get_tensor_name(target.get(), i));
        if (tensor == nullptr || !tensor->bytes) {
            throw Error(
                fmt::format("{} of {} is of a type unknown here", gguf_get_tensor_name(target.get(), i), file.path()));
        }
        const auto found = changed.find(tensor->name);
        const std::vector<float> weights =
            found == changed.end() ? std::vector<float>() : truncated(*tensor, found->second);
        const auto bytes = found == changed.end() ? *tensor->bytes : std::as_bytes(std::span(weights));
        out.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
        out.write(std::string((alignment - bytes.size() % alignment) % alignment, '\0'));
        progress.update(static_cast<size_t>(i + 1), static_cast<size_t>(n_tensors));
    }
    out.publish();
    progress.finish(fmt::format("{} tensors", n_tensors));
}

/// Throws CLI::ValidationError where options do not go together.
void check_options(const LowRankOptions& options) {
    if (!options.text_files.empty() && options.basis == Basis::kWeights) {
        throw CLI::ValidationError("--text", "text is read with --basis whitened and data only");
    }
    if (!options.emit_model.empty() && options.basis == Basis::kData) {
        throw CLI::ValidationError("--emit-model",
                                   "projections have no place for the mean of --basis data; take --basis whitened");
    }
    if (options.ranks == Ranks::kMeasured && options.basis == Basis::kWeights) {
        throw CLI::ValidationError("--measured", "ranks are measured with --basis whitened and data only");
    }
    if (options.ranks == Ranks::kMeasured && !(options.keep_k.empty() && options.keep_v.empty())) {
        throw CLI::ValidationError("--measured",
                                   "it shares out --keep between K and V, leave out --keep-k and --keep-v");
    }
}

void lowrank(const LowRankOptions& options) {
    const double keep = share_of("--keep", options.keep);
    const double keep_k = options.keep_k.empty() ? keep : share_of("--keep-k", options.keep_k);
    const double keep_v = options.keep_v.empty() ? keep : share_of("--keep-v", options.keep_v);
    check_options(options);
    const ModelInfo model = read_model_info(options.model);
    for (const std::string& path : {options.output, options.emit_model}) {
        if (!path.empty() && fs::exists(path) && fs::equivalent(path, options.model)) {
            throw Error(fmt::format("{} is the model, which cannot be written over; name another file", path));
        }
    }
    if (!options.output.empty() && !options.emit_model.empty() &&
        fs::absolute(options.output).lexically_normal() == fs::absolute(options.emit_model).lexically_normal()) {
        throw Error(fmt::format("{} cannot be the artifact and the model; name two files", options.output));
    }
    if (options.ranks == Ranks::kMeasured) {
        find_plugin("");  // what fails is to fail before hours of work
    }
    std::optional<TemporaryFile> emitted;
    if (!options.emit_model.empty()) {
        emitted.emplace(options.emit_model);
    }
    if (!options.output.empty()) {
        check_artifact_writable(options.output);
    }
    const GgufFile file(options.model);
    if (file.get_uint("split.count").value_or(1) > 1) {
        throw Error(fmt::format("{} is one of several files; join them with llama-gguf-split --merge", options.model));
    }
    std::vector<Side> sides = find_sides(file, model, options);
    check_norms(file, options, sides);
    Harvest harvest;  // sides point into it
    if (options.basis != Basis::kWeights) {
        harvest = see_inputs(model, options, sides);
    }
    decompose_all(file, options.basis, sides, options.n_threads);
    std::vector<double> log_condition;
    for (size_t i = 0; i < sides.size(); i += 2) {
        log_condition.push_back(sides[i].log_condition() + sides[i + 1].log_condition());
    }
    if (options.ranks == Ranks::kMeasured) {
        measure_ranks(model, harvest, options, keep, sides);
    } else {
        choose_ranks(sides, options, true, keep_k, log_condition);
        choose_ranks(sides, options, false, keep_v, log_condition);
    }
    print_report(sides, log_condition);
    const auto wrote = [](const std::string& path) {
        fmt::print("Wrote {} ({:.1f} MB)\n", path, static_cast<double>(fs::file_size(path)) / 1e6);
    };
    if (!options.output.empty()) {
        write_artifact(make_artifact(model, sides, harvest), options.output);
        wrote(options.output);
    }
    if (emitted) {
        emit_model(file, sides, options.emit_f32, *emitted);
        wrote(options.emit_model);
    }
}

}  // namespace

void add_lowrank_command(CLI::App& app) {
    auto options = std::make_shared<LowRankOptions>();
    CLI::App* command = app.add_subcommand("lowrank", "Low ranks of a model's K and V projections (LoRC)");
    command->add_option("-m,--model", options->model, "Model (GGUF)")->required()->check(CLI::ExistingFile);
    command->add_option("-o,--output", options->output,
                        "Artifact to write, for a cache of latents; without it there is a report only");
    command->add_option("--keep", options->keep, "Share of the full rank to keep, over all layers")
        ->capture_default_str();
    command->add_option("--keep-k", options->keep_k, "The same of K alone");
    command->add_option("--keep-v", options->keep_v, "The same of V alone");
    auto* progressive = command->add_flag_callback(
        "--progressive", [options] { options->ranks = Ranks::kProgressive; },
        "Ranks fall with the cumulative condition number, as published [default]");
    auto* uniform = command->add_flag_callback(
        "--uniform", [options] { options->ranks = Ranks::kUniform; }, "The same rank in all layers");
    auto* measured = command->add_flag_callback(
        "--measured", [options] { options->ranks = Ranks::kMeasured; },
        "Ranks by what predictions lose, measured for K and V of each layer over some of the text");
    uniform->excludes(progressive)->excludes(measured);
    measured->excludes(progressive);
    command
        ->add_option("--steepness", options->steepness,
                     "Of progressive ranks: the last layer's lies so far below the first one's, in parts of it (less "
                     "where the first one's is full)")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str()
        ->excludes(uniform)
        ->excludes(measured);
    command->add_flag("--per-head,!--joint", options->per_head,
                      "Each KV head has latents of its own, instead of all of a layer together");
    const std::map<std::string, Basis> bases = {
        {"weights", Basis::kWeights}, {"whitened", Basis::kWhitened}, {"data", Basis::kData}};
    command
        ->add_option("--basis", options->basis,
                     "Singular vectors of the weights, as published, or of what they make of text that the model "
                     "writes, or principal components of keys and values over it")
        ->transform(CLI::CheckedTransformer(bases, CLI::ignore_case).description("weights|whitened|data"))
        ->default_str("weights");
    command->add_option("--text", options->text_files, "Text files instead of text that the model writes")
        ->check(CLI::ExistingFile);
    command->add_option("--tokens", options->n_tokens, "Tokens of text")
        ->check(CLI::Range(64, 100'000'000))
        ->capture_default_str();
    command->add_option("--sensitivity-tokens", options->sensitivity_tokens, "Tokens of text for --measured")
        ->check(CLI::Range(32, 65536))
        ->capture_default_str();
    auto* emit = command->add_option("--emit-model", options->emit_model,
                                     "Model to write: the same with its K and V projections truncated, in F32");
    command
        ->add_flag("--emit-f32", options->emit_f32,
                   "All of its matrices in F32: with those of few bits llama.cpp rounds activations, which hides small "
                   "differences")
        ->needs(emit);
    command->add_option("--threads", options->n_threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--seed", options->seed, "Seed of the sampled text")->capture_default_str();
    command->callback([options] { lowrank(*options); });
}

}  // namespace kvcodec
