// `kvcodec lowrank`: what low ranks leave of a model's K and V projections (LoRC, arXiv 2410.03111), and models with
// projections of low rank.
#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>

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

#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/error.h"
#include "kvcodec/learn/low_rank.h"
#include "kvcodec/learn/principal_components.h"
#include "tools/commands.h"
#include "tools/harvest.h"
#include "tools/progress.h"
#include "tools/weights.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

/// Ranks are whole vectors of the kernels.
constexpr size_t kMultiple = 8;

enum class Basis : uint8_t {
    kWeights,   ///< singular vectors of the weights, as published
    kWhitened,  ///< of the weights times the root of the inputs' second moments: of what they make of real inputs
};

struct LowRankOptions {
    std::string model;
    std::string emit_model;
    std::string keep = "60%";
    std::string keep_k;
    std::string keep_v;
    bool uniform = false;
    double steepness = 0.5;
    bool per_head = false;
    Basis basis = Basis::kWeights;
    std::vector<std::string> text_files;
    size_t n_tokens = 4096;
    size_t n_threads = std::max(1U, std::thread::hardware_concurrency());
    uint64_t seed = 0;
};

/// "60%" or "0.6".
double share_of(const std::string& text) {
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
        throw CLI::ValidationError("--keep", fmt::format("'{}' is not a share like 60%", text));
    }
    return value;
}

/// K or V of one layer.
struct Side {
    uint32_t layer = 0;
    bool is_k = false;
    Projection projection;
    size_t n_heads = 1;                ///< that are taken apart; 1: all together
    std::vector<LeftSingular> bases;   ///< [n_heads]
    std::vector<double> seen_moments;  ///< [n_rows, n_rows] of what the projection makes of real inputs; may be empty
    size_t rank = 0;                   ///< of each of them
    std::string problem;

    size_t full_rank() const { return projection.n_rows / n_heads; }
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
    /// Largest singular value that is left out, over the largest of all: bounds ||W x - W_r x|| / (||W|| ||x||).
    double bound() const {
        double largest = 0.0, left = 0.0;
        for (const LeftSingular& basis : bases) {
            largest = std::max(largest, basis.values.front());
            left = std::max(left, rank < basis.rows() ? basis.values[rank] : 0.0);
        }
        return largest == 0.0 ? 0.0 : left / largest;
    }
};

/// The diagonal block of one head.
std::vector<double> block_of(std::span<const double> moments, size_t n_rows, size_t first, size_t size) {
    std::vector<double> block;
    for (size_t i = first; i < first + size; ++i) {
        const auto row = moments.subspan(i * n_rows + first, size);
        block.insert(block.end(), row.begin(), row.end());
    }
    return block;
}

std::vector<float> weights_of(const Side& side) {
    const Projection& p = side.projection;
    auto weights = read_rows(*p.tensor, p.first_row, p.n_rows);
    if (!weights) {
        throw Error(fmt::format("{} is of a type that cannot be read", p.tensor->name));
    }
    return *std::move(weights);
}

void decompose(Side& side) {
    const size_t size = side.full_rank();
    const std::vector<float> weights = side.seen_moments.empty() ? weights_of(side) : std::vector<float>();
    for (size_t head = 0; head < side.n_heads; ++head) {
        if (side.seen_moments.empty()) {
            const size_t columns = side.projection.n_columns;
            side.bases.push_back(
                left_singular(std::span(weights).subspan(head * size * columns, size * columns), size, columns));
        } else {
            side.bases.push_back(
                left_singular(block_of(side.seen_moments, side.projection.n_rows, head * size, size), size));
        }
    }
    side.seen_moments = {};
}

void decompose_all(std::vector<Side>& sides, size_t n_threads) {
    Progress progress("singular values");
    std::atomic<size_t> next = 0, done = 0;
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < std::min(n_threads, sides.size()); ++t) {
        threads.emplace_back([&] {
            for (size_t i = next++; i < sides.size(); i = next++) {
                try {
                    decompose(sides[i]);
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

std::vector<float> bias_of(const GgufFile& file, const Side& side) {
    std::vector<float> bias(side.projection.n_rows);
    const bool fused = side.projection.first_row != 0;
    const GgufTensor* tensor = file.find_tensor(fmt::format("blk.{}.attn_{}.bias", side.layer,
                                                            fused       ? "qkv"
                                                            : side.is_k ? "k"
                                                                        : "v"));
    if (tensor == nullptr) {
        return bias;
    }
    if (tensor->type != kGgmlF32 || !tensor->bytes ||
        tensor->bytes->size() < (side.projection.first_row + bias.size()) * sizeof(float)) {
        throw Error(fmt::format("{} is of an unexpected type or shape", tensor->name));
    }
    std::memcpy(bias.data(), tensor->bytes->data() + side.projection.first_row * sizeof(float),
                bias.size() * sizeof(float));
    return bias;
}

/// Second moments of what each projection makes of the inputs it meets: rows of keys before RoPE and of values, less
/// the bias.
void add_seen_moments(const GgufFile& file, const ModelInfo& model, const LowRankOptions& options,
                      std::vector<Side>& sides) {
    if (file.find_tensor(fmt::format("blk.{}.attn_k_norm.weight", sides.front().layer)) != nullptr) {
        throw Error(
            "keys are normalised after their projection: --basis whitened cannot see what it makes of inputs; "
            "take --basis weights");
    }
    HarvestOptions harvest_options;
    harvest_options.text_files = options.text_files;
    harvest_options.n_tokens = options.n_tokens;
    harvest_options.n_threads = options.n_threads;
    harvest_options.seed = options.seed;
    Progress progress(options.text_files.empty() ? "sampling text from the model" : "reading text");
    harvest_options.progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const Harvest harvest = Harvester(model, harvest_options).harvest();
    progress.finish(fmt::format("{} tokens", harvest.n_tokens));
    for (Side& side : sides) {
        const auto layer = std::ranges::find(harvest.layers, side.layer, &HarvestedLayer::layer);
        if (layer == harvest.layers.end()) {
            throw Error(harvest.skipped.empty() ? fmt::format("layer {} was not seen", side.layer)
                                                : harvest.skipped.front());
        }
        const HarvestedRows& rows = side.is_k ? layer->k : layer->v;
        std::vector<float> x = rows.residuals();
        const std::vector<float> mean = rows.mean(), bias = bias_of(file, side);
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] += mean[i % mean.size()] - bias[i % bias.size()];
        }
        side.seen_moments = second_moments(x, side.projection.n_rows);
    }
}

/// Ranks of K or of V in all layers.
void choose_ranks(std::vector<Side>& sides, const LowRankOptions& options, bool is_k, double keep,
                  std::span<const double> log_condition) {
    const std::vector<double> shares =
        progressive_shares(log_condition, keep, options.uniform ? 0.0 : options.steepness);
    const std::vector<size_t> ranks = ranks_of(shares, sides.front().full_rank(), kMultiple);
    for (size_t i = 0; i < sides.size(); ++i) {
        if (sides[i].is_k == is_k) {
            const bool alike = sides[i].full_rank() == sides.front().full_rank();
            sides[i].rank = alike ? ranks[i / 2]
                                  : ranks_of(std::span(shares).subspan(i / 2, 1), sides[i].full_rank(), kMultiple)[0];
        }
    }
}

void print_report(const std::vector<Side>& sides, std::span<const double> log_condition) {
    fmt::print(
        "Condition: largest over smallest singular value, of K and V; cumulative: log10 of the product from the layer "
        "on.\nLost: share of the squared singular values that the rank leaves out; bound: the largest of these over "
        "the largest of all.\n\n{:>5} {:>10} {:>10} {:>10} | {:>11} {:>6} {:>6} | {:>11} {:>6} {:>6}\n",
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
    auto weights = read_rows(tensor, 0, static_cast<size_t>(tensor.dims[1]));
    if (!weights) {
        throw Error(fmt::format("{} is of a type that cannot be read", tensor.name));
    }
    for (const Side* side : sides) {
        const size_t size = side->full_rank() * columns;
        for (size_t head = 0; head < side->n_heads && side->rank < side->full_rank(); ++head) {
            const auto block = std::span(*weights).subspan(side->projection.first_row * columns + head * size, size);
            project(side->bases[head], side->rank, block, columns, block);
        }
    }
    return *std::move(weights);
}

/// Writes the model as a whole or not at all.
void emit_model(const GgufFile& file, const std::vector<Side>& sides, const std::string& path) {
    std::map<std::string_view, std::vector<const Side*>> changed;  // by tensor
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
    for (ggml_tensor* t = ggml_get_first_tensor(tensors); t != nullptr; t = ggml_get_next_tensor(tensors, t)) {
        gguf_add_tensor(target.get(), t);
    }
    for (const auto& [name, of_tensor] : changed) {
        gguf_set_tensor_type(target.get(), std::string(name).c_str(), GGML_TYPE_F32);
    }
    const std::string temporary = path + ".tmp";
    const auto fail = [&] {
        std::error_code ignored;
        fs::remove(temporary, ignored);
        throw Error(fmt::format("{} cannot be written; is there space on the disk?", path));
    };
    const std::unique_ptr<FILE, int (*)(FILE*)> out(std::fopen(temporary.c_str(), "wb"), std::fclose);
    if (out == nullptr || !gguf_write_to_file_ptr(target.get(), out.get(), true)) {
        fail();
    }
    Progress progress("writing");
    const size_t alignment = gguf_get_alignment(target.get());
    const int64_t n_tensors = gguf_get_n_tensors(target.get());
    for (int64_t i = 0; i < n_tensors; ++i) {
        const GgufTensor* tensor = file.find_tensor(gguf_get_tensor_name(target.get(), i));
        if (tensor == nullptr || !tensor->bytes) {
            std::error_code ignored;
            fs::remove(temporary, ignored);
            throw Error(
                fmt::format("{} of {} is of a type unknown here", gguf_get_tensor_name(target.get(), i), file.path()));
        }
        const auto found = changed.find(tensor->name);
        const std::vector<float> weights =
            found == changed.end() ? std::vector<float>() : truncated(*tensor, found->second);
        const auto bytes = found == changed.end() ? *tensor->bytes : std::as_bytes(std::span(weights));
        const std::vector<std::byte> padding((alignment - bytes.size() % alignment) % alignment);
        if (std::fwrite(bytes.data(), 1, bytes.size(), out.get()) != bytes.size() ||
            std::fwrite(padding.data(), 1, padding.size(), out.get()) != padding.size()) {
            fail();
        }
        progress.update(static_cast<size_t>(i + 1), static_cast<size_t>(n_tensors));
    }
    if (std::fflush(out.get()) != 0) {
        fail();
    }
    std::error_code error;
    fs::rename(temporary, path, error);
    if (error) {
        fail();
    }
    progress.finish(fmt::format("{} tensors", n_tensors));
}

void lowrank(const LowRankOptions& options) {
    const double keep = share_of(options.keep);
    const double keep_k = options.keep_k.empty() ? keep : share_of(options.keep_k);
    const double keep_v = options.keep_v.empty() ? keep : share_of(options.keep_v);
    const ModelInfo model = read_model_info(options.model);
    if (!options.emit_model.empty() && fs::exists(options.emit_model) &&
        fs::equivalent(options.emit_model, options.model)) {
        throw Error("the model cannot be written over itself; name another file after --emit-model");
    }
    const GgufFile file(options.model);
    std::vector<Side> sides = find_sides(file, model, options);
    if (options.basis == Basis::kWhitened) {
        add_seen_moments(file, model, options, sides);
    }
    decompose_all(sides, options.n_threads);
    std::vector<double> log_condition;
    for (size_t i = 0; i < sides.size(); i += 2) {
        log_condition.push_back(sides[i].log_condition() + sides[i + 1].log_condition());
    }
    choose_ranks(sides, options, true, keep_k, log_condition);
    choose_ranks(sides, options, false, keep_v, log_condition);
    print_report(sides, log_condition);
    if (!options.emit_model.empty()) {
        emit_model(file, sides, options.emit_model);
        fmt::print("Wrote {} ({:.1f} MB)\n", options.emit_model,
                   static_cast<double>(fs::file_size(options.emit_model)) / 1e6);
    }
}

}  // namespace

void add_lowrank_command(CLI::App& app) {
    auto options = std::make_shared<LowRankOptions>();
    CLI::App* command = app.add_subcommand("lowrank", "What low ranks leave of a model's K and V projections (LoRC)");
    command->add_option("-m,--model", options->model, "Model (GGUF)")->required()->check(CLI::ExistingFile);
    command->add_option("--keep", options->keep, "Share of the full rank to keep, over all layers")
        ->capture_default_str();
    command->add_option("--keep-k", options->keep_k, "The same of K alone");
    command->add_option("--keep-v", options->keep_v, "The same of V alone");
    auto* uniform = command->add_flag("--uniform", options->uniform, "The same rank in all layers");
    command
        ->add_option("--steepness", options->steepness,
                     "Progressive ranks fall with the cumulative condition number: the last layer's lies so far below "
                     "the first one's, in parts of it")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str()
        ->excludes(uniform);
    command->add_flag("--per-head", options->per_head, "Each KV head has singular vectors of its own");
    const std::map<std::string, Basis> bases = {{"weights", Basis::kWeights}, {"whitened", Basis::kWhitened}};
    command
        ->add_option(
            "--basis", options->basis,
            "Singular vectors of the weights, as published, or of what they make of text that the model writes")
        ->transform(CLI::CheckedTransformer(bases, CLI::ignore_case).description("weights|whitened"))
        ->default_str("weights");
    command->add_option("--text", options->text_files, "Text files for --basis whitened")->check(CLI::ExistingFile);
    command->add_option("--tokens", options->n_tokens, "Tokens of text for --basis whitened")
        ->check(CLI::Range(64, 100'000'000))
        ->capture_default_str();
    command->add_option("--emit-model", options->emit_model,
                        "Model to write: the same with its K and V projections truncated, in F32");
    command->add_option("--threads", options->n_threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--seed", options->seed, "Seed of the sampled text")->capture_default_str();
    command->callback([options] { lowrank(*options); });
}

}  // namespace kvcodec
