// `kvcodec train`: learns the dictionaries, means and directions of a model and writes its artifact.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/gguf_file.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/codec/transform/transform_codec.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/learn/dictionary_learning.h"
#include "kvcodec/learn/low_rank.h"
#include "kvcodec/learn/principal_components.h"
#include "tools/commands.h"
#include "tools/harvest.h"
#include "tools/plugin_path.h"
#include "tools/progress.h"
#include "tools/sensitivity.h"
#include "tools/weights.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

/// How much directions count by what reads them.
enum class Weighting : uint8_t { kNone, kTempered, kFull };

/// How budgets are to be shared out between layers and sides.
enum class Sensitivity : uint8_t {
    kMeasured,   ///< by what predictions lose
    kCondition,  ///< by cumulative condition numbers of the projections, LoRC's rule for ranks
    kNone,       ///< alike
};

struct TrainOptions {
    std::string model;
    std::string output;
    std::vector<std::string> text_files;
    size_t n_tokens = 16384;
    DictionaryLearner learner = DictionaryLearner::kKsvd;
    size_t n_atoms = 1024;
    size_t sparsity = 8;
    size_t sweeps = 8;
    float learning_rate = LearnOptions().learning_rate;
    size_t n_threads = std::max(1U, std::thread::hardware_concurrency());
    size_t ctx_size = 512;
    Sensitivity sensitivity = Sensitivity::kMeasured;
    size_t sensitivity_tokens = 128;
    Weighting weighting = Weighting::kTempered;
    size_t joint_width = 1;
    uint64_t seed = 0;
};

// ---- learning ------------------------------------------------------------------------------------------------------

/// K or V of one layer: a dictionary to learn.
struct Job {
    HarvestedLayer* layer;
    bool is_k;
    SideArtifact side;
    std::string problem;
};

/// Residuals as a codec meets them: rows without their mean, those of K rotated to random positions of the model's
/// context, so that short texts train for all of it.
std::vector<float> training_rows(const Job& job, uint32_t n_positions, uint64_t seed) {
    const HarvestedRows& rows = job.is_k ? job.layer->k : job.layer->v;
    std::vector<float> x = rows.residuals();
    if (job.is_k) {
        const Rope rope(job.layer->rope, rows.dim());
        std::mt19937_64 random(seed + job.layer->layer);
        for (size_t i = 0; rope.rotates() && i < x.size(); i += rows.dim()) {
            rope.rotate(x.data() + i, static_cast<int64_t>(random() % std::max(n_positions, 1U)));
        }
    }
    return x;
}

/// Most heads, a divisor of n_head, whose vectors side by side have at most `width` elements; at least 1.
size_t joint_heads(size_t n_head, size_t dim, size_t width) {
    size_t n_joint = std::max<size_t>(1, std::min(n_head, width / dim));
    while (n_head % n_joint != 0) {
        --n_joint;
    }
    return n_joint;
}

/// The directions along which rows are coded, those of n_joint heads side by side, the variance along them and what
/// noise loses. readers: [n_head, dim, dim] second moments of what takes products with the rows; empty: all directions
/// count alike.
void find_directions(const HarvestedRows& rows, size_t n_joint, std::span<const double> readers,
                     const Tempering& tempering, SideArtifact& side) {
    const std::vector<float> residuals = rows.residuals();
    const size_t dim = rows.dim(), width = n_joint * dim;
    side.joint_heads = static_cast<uint32_t>(n_joint);
    double noise = 0.0, all = 0.0;  // weighted energy of noise with the rows' energy, and of the rows
    std::vector<float> of_set(rows.n_tokens() * width);
    for (size_t first = 0; first < rows.n_head(); first += n_joint) {
        for (size_t token = 0; token < rows.n_tokens(); ++token) {
            std::copy_n(residuals.data() + (token * rows.n_head() + first) * dim, width, of_set.data() + token * width);
        }
        std::vector<double> of_readers(readers.empty() ? 0 : width * width);  // no reader meets two heads
        for (size_t i = 0; !readers.empty() && i < width; ++i) {
            const size_t head = i / dim;
            std::copy_n(readers.data() + ((first + head) * dim + i % dim) * dim, dim,
                        &of_readers[i * width + head * dim]);
        }
        const WeightedComponents components = find_weighted_components(of_set, of_readers, width, tempering);
        std::ranges::transform(components.basis, std::back_inserter(side.basis), float_to_half);
        side.variance.insert(side.variance.end(), components.variance.begin(), components.variance.end());
        noise += components.mean_weight * components.energy;
        all += std::accumulate(components.variance.begin(), components.variance.end(), 0.0);
    }
    if (noise > 0.0 && all > 0.0) {
        side.loss_of_noise = static_cast<float>(noise / all);
    }
}

void learn(Job& job, const ModelInfo& model, const GgufFile& file, const TrainOptions& options,
           const std::function<void(size_t, float)>& progress) {
    HarvestedRows& rows = job.is_k ? job.layer->k : job.layer->v;
    LearnOptions learn_options;
    learn_options.learner = options.learner;
    learn_options.n_atoms = options.n_atoms;
    learn_options.sparsity = options.sparsity;
    learn_options.sweeps = options.sweeps;
    learn_options.learning_rate = options.learning_rate;
    learn_options.seed = options.seed;
    learn_options.stop = &InterruptGuard::interrupted();
    learn_options.progress = progress;
    const LearnedDictionary learned =
        learn_dictionary(training_rows(job, model.n_ctx_train, options.seed), rows.dim(), learn_options);
    job.side.dim = static_cast<uint32_t>(rows.dim());
    job.side.n_atoms = static_cast<uint32_t>(options.n_atoms);
    std::ranges::transform(learned.atoms, std::back_inserter(job.side.atoms), float_to_half);
    job.side.mean = rows.mean();
    job.side.levels.assign(learned.levels.begin(), learned.levels.end());
    job.side.heldout_error = learned.heldout_error;
    std::vector<double> readers;
    if (options.weighting != Weighting::kNone) {
        readers = job.is_k ? std::move(job.layer->query_moments) : output_moments(file, model, job.layer->layer);
    }
    find_directions(rows, joint_heads(rows.n_head(), rows.dim(), options.joint_width), readers,
                    options.weighting == Weighting::kFull ? kUntempered : Tempering(), job.side);
    rows.clear();
}

/// All jobs, one thread each. After an interruption those that have not begun get unlearned dictionaries of data rows,
/// which takes moments.
void learn_all(std::vector<Job>& jobs, const ModelInfo& model, const TrainOptions& options) {
    Progress progress("learning");
    const GgufFile file(model.path);
    const size_t n_sweeps = jobs.size() * options.sweeps;
    std::atomic<size_t> next_job = 0, sweeps_done = 0, jobs_done = 0;
    const auto work = [&] {
        for (size_t i = next_job++; i < jobs.size(); i = next_job++) {
            try {
                learn(jobs[i], model, file, options, [&](size_t, float) {
                    progress.update(++sweeps_done, n_sweeps,
                                    fmt::format("{} of {} dictionaries", jobs_done.load(), jobs.size()));
                });
            } catch (const std::exception& error) {
                jobs[i].problem = error.what();
            }
            ++jobs_done;
        }
    };
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < std::min(options.n_threads, jobs.size()); ++t) {
        threads.emplace_back(work);
    }
    threads.clear();
    progress.finish(fmt::format("{} dictionaries of {} atoms", jobs.size(), options.n_atoms));
}

std::vector<LayerArtifact> learn_layers(Harvest& harvest, const ModelInfo& model, const TrainOptions& options) {
    std::vector<Job> jobs;
    for (HarvestedLayer& layer : harvest.layers) {
        jobs.push_back({&layer, true, {}, {}});
        jobs.push_back({&layer, false, {}, {}});
    }
    learn_all(jobs, model, options);
    std::vector<LayerArtifact> layers;
    for (size_t i = 0; i < jobs.size(); i += 2) {
        Job &k = jobs[i], &v = jobs[i + 1];
        if (const std::string& problem = k.problem.empty() ? v.problem : k.problem; !problem.empty()) {
            harvest.skipped.push_back(fmt::format("layer {} is left out: {}", k.layer->layer, problem));
            continue;
        }
        layers.push_back({k.layer->layer, static_cast<uint32_t>(k.layer->k.n_head()), k.layer->rope, std::move(k.side),
                          std::move(v.side)});
    }
    return layers;
}

// ---- the command ---------------------------------------------------------------------------------------------------

void check_enough_rows(const ModelInfo& model, const TrainOptions& options, size_t n_tokens) {
    size_t n_head_kv = 0;
    for (const uint32_t n : model.n_head_kv) {
        n_head_kv = n_head_kv == 0 || (n != 0 && n < n_head_kv) ? n : n_head_kv;
    }
    // One row in 16 is held out.
    const size_t needed = (options.n_atoms * 16 / 15 + 1) / std::max<size_t>(n_head_kv, 1) + 1;
    if (n_tokens < needed) {
        throw Error(
            fmt::format("{} atoms need at least {} tokens of text, there are {}; give more --text or --tokens, "
                        "or fewer --atoms",
                        options.n_atoms, needed, n_tokens));
    }
}

Harvest harvest_rows(const ModelInfo& model, const TrainOptions& options) {
    HarvestOptions harvest_options;
    harvest_options.text_files = options.text_files;
    harvest_options.n_tokens = options.n_tokens;
    harvest_options.ctx_size = options.ctx_size;
    harvest_options.n_threads = options.n_threads;
    harvest_options.seed = options.seed;
    harvest_options.stop = &InterruptGuard::interrupted();
    Progress progress(options.text_files.empty() ? "sampling text from the model" : "reading text");
    harvest_options.progress = [&](size_t done, size_t total) {
        progress.update(done, total, fmt::format("{:.0f} tokens/s", static_cast<double>(done) / progress.seconds()));
    };
    Harvester harvester(model, harvest_options);
    check_enough_rows(model, options, harvester.available_tokens());
    if (harvester.available_tokens() < options.n_tokens) {
        fmt::print(stderr, "the text has only {} tokens to learn from\n", harvester.available_tokens());
    }
    Harvest harvest = harvester.harvest();
    progress.finish(fmt::format("{} tokens", harvest.n_tokens));
    return harvest;
}

/// A prior from the weights alone: sensitivities that fall from layer to layer as LoRC's ranks do.
void add_condition_prior(Artifact& artifact, const ModelInfo& model) {
    const GgufFile file(model.path);
    std::vector<double> log_conditions;
    for (const LayerArtifact& layer : artifact.layers) {
        const auto k = log_condition(find_projection(file, model, layer.layer, true));
        const auto v = log_condition(find_projection(file, model, layer.layer, false));
        if (!k || !v) {
            throw Error(fmt::format("the K and V projections of layer {} cannot be read; take --sensitivity measured",
                                    layer.layer));
        }
        log_conditions.push_back(*k + *v);
    }
    constexpr double kMean = 0.5, kSteepness = 0.5;  // the last layer counts half as much as the first
    const std::vector<double> shares = progressive_shares(log_conditions, kMean, kSteepness);
    for (size_t i = 0; i < shares.size(); ++i) {
        artifact.layers[i].k.sensitivity = artifact.layers[i].v.sensitivity = static_cast<float>(shares[i]);
    }
}

/// Adds to the artifact what plan_budget() goes by. It is of use without: nothing here is an error.
void add_sensitivity(Artifact& artifact, const Harvest& harvest, const TrainOptions& options) {
    SensitivityOptions measurement{options.model, {}, options.output, {}, options.n_threads, {}};
    measurement.sequences = sequences_to_measure(harvest, options.sensitivity_tokens);
    if (measurement.sequences.empty() || InterruptGuard::interrupted()) {
        return;
    }
    try {
        measurement.plugin = find_plugin("");
        Progress progress("measuring how sensitive layers are");
        measurement.progress = [&](size_t done, size_t total) {
            progress.update(done, total, fmt::format("layer {} of {}", done, total));
            if (InterruptGuard::interrupted()) {
                throw Error("interrupted");
            }
        };
        measure_sensitivity(artifact, measurement);
        write_artifact(artifact, options.output);
        size_t n_tokens = 0;
        for (const std::vector<int32_t>& sequence : measurement.sequences) {
            n_tokens += sequence.size();
        }
        progress.finish(fmt::format("{} layers over {} tokens", artifact.layers.size(), n_tokens));
    } catch (const Error& error) {
        fmt::print(stderr, "budgets will count all layers alike, their sensitivity is not measured: {}\n",
                   error.what());
    }
}

void print_errors(const Artifact& artifact) {
    double k_sum = 0.0, v_sum = 0.0;
    const bool measured = artifact.layers.front().k.sensitivity > 0;
    fmt::print("Held-out error at s={}, ||x - x̂|| / ||x|| without the mean{}\nlayer       K       V{}\n",
               artifact.training_sparsity, measured ? "; sensitivity: what a loss of 1 counts" : "",
               measured ? "  sensitivity: K       V" : "");
    for (const LayerArtifact& layer : artifact.layers) {
        fmt::print("{:5}  {:6.3f}  {:6.3f}{}\n", layer.layer, layer.k.heldout_error, layer.v.heldout_error,
                   measured ? fmt::format("         {:7.4f} {:7.4f}", layer.k.sensitivity, layer.v.sensitivity) : "");
        k_sum += layer.k.heldout_error;
        v_sum += layer.v.heldout_error;
    }
    const auto n = static_cast<double>(artifact.layers.size());
    fmt::print(" mean  {:6.3f}  {:6.3f}\n", k_sum / n, v_sum / n);
}

void train(TrainOptions options) {
    const auto start = std::chrono::steady_clock::now();
    const ModelInfo model = read_model_info(options.model);
    if (options.output.empty()) {
        options.output = default_artifact_path(model.fingerprint);
    }
    check_artifact_writable(options.output);
    check_enough_rows(model, options, options.n_tokens);

    const InterruptGuard guard;
    Harvest harvest = harvest_rows(model, options);
    Artifact artifact;
    artifact.model_name = model.name;
    artifact.model_fingerprint = model.fingerprint;
    artifact.architecture = model.architecture;
    artifact.training_source = harvest.source;
    artifact.training_sparsity = static_cast<uint32_t>(options.sparsity);
    artifact.training_tokens = harvest.n_tokens;
    artifact.layers = learn_layers(harvest, model, options);
    for (const std::string& line : harvest.skipped) {
        fmt::print(stderr, "{}\n", line);
    }
    if (artifact.layers.empty()) {
        throw Error(fmt::format("no layer of {} can be coded; nothing was written", options.model));
    }
    write_artifact(artifact, options.output);
    if (options.sensitivity == Sensitivity::kMeasured) {
        add_sensitivity(artifact, harvest, options);
    } else if (options.sensitivity == Sensitivity::kCondition) {
        add_condition_prior(artifact, model);
        write_artifact(artifact, options.output);
    }
    print_errors(artifact);
    if (InterruptGuard::interrupted()) {
        fmt::print(stderr,
                   "interrupted: the artifact holds the best dictionaries so far; train again for better ones\n");
    }
    fmt::print("Wrote {} ({:.1f} MB) in {}\n", options.output, static_cast<double>(fs::file_size(options.output)) / 1e6,
               duration(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()));
}

}  // namespace

void add_train_command(CLI::App& app) {
    auto options = std::make_shared<TrainOptions>();
    CLI::App* command = app.add_subcommand("train", "Learn a model's dictionaries and write its artifact");
    command->add_option("-m,--model", options->model, "Model (GGUF)")->required()->check(CLI::ExistingFile);
    command->add_option("-o,--output", options->output, "Artifact to write; default: where `run` looks for it");
    command->add_option("--text", options->text_files, "Text files to learn from; default: the model writes its own")
        ->check(CLI::ExistingFile);
    command->add_option("--tokens", options->n_tokens, "Tokens to learn from")
        ->check(CLI::Range(64, 100'000'000))
        ->capture_default_str();
    command->add_option("--atoms", options->n_atoms, "Atoms of a dictionary")
        ->check(CLI::Range(2, 32768))
        ->capture_default_str();
    command->add_option("--sparsity", options->sparsity, "Atoms per vector in training")
        ->check(CLI::Range(size_t{1}, kMaxSparsity))
        ->capture_default_str();
    const std::map<std::string, DictionaryLearner> learners = {{"ksvd", DictionaryLearner::kKsvd},
                                                               {"gradient", DictionaryLearner::kGradient}};
    command
        ->add_option("--learner", options->learner,
                     "How dictionaries are learned: ksvd; or gradient, as published, which takes many more sweeps")
        ->transform(CLI::CheckedTransformer(learners, CLI::ignore_case).description("ksvd|gradient"))
        ->default_str("ksvd");
    command->add_option("--learning-rate", options->learning_rate, "First step size of the gradient learner")
        ->check(CLI::Range(1e-8F, 1.0F))
        ->capture_default_str();
    command->add_option("--sweeps", options->sweeps, "Learning passes over the rows")
        ->check(CLI::Range(0, 1000))
        ->capture_default_str();
    command->add_option("--threads", options->n_threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--ctx-size", options->ctx_size, "Tokens of a training sequence")
        ->check(CLI::Range(32, 1 << 20))
        ->capture_default_str();
    const std::map<std::string, Sensitivity> sensitivities = {
        {"measured", Sensitivity::kMeasured}, {"condition", Sensitivity::kCondition}, {"none", Sensitivity::kNone}};
    command
        ->add_option("--sensitivity", options->sensitivity,
                     "How budgets are shared out between layers and sides: by measurement, by cumulative condition "
                     "numbers of the projections (LoRC), or alike")
        ->transform(CLI::CheckedTransformer(sensitivities, CLI::ignore_case).description("measured|condition|none"))
        ->default_str("measured");
    command
        ->add_option("--sensitivity-tokens", options->sensitivity_tokens,
                     "Tokens to measure with how much errors in each layer matter")
        ->check(CLI::Range(32, 1 << 20))
        ->capture_default_str();
    const std::map<std::string, Weighting> weightings = {
        {"none", Weighting::kNone}, {"tempered", Weighting::kTempered}, {"full", Weighting::kFull}};
    command
        ->add_option("--weighting", options->weighting,
                     "How much directions of the transform count by the queries and the output projection that read "
                     "them; tempered: by the square root of that, and none for nothing")
        ->transform(CLI::CheckedTransformer(weightings, CLI::ignore_case).description("none|tempered|full"))
        ->default_str("tempered");
    command
        ->add_option("--joint-width", options->joint_width,
                     "The transform codes heads of a layer together, as many as have so many elements (1: each by "
                     "itself)")
        ->check(CLI::Range(size_t{1}, TransformFormat::kMaxDim))
        ->capture_default_str();
    command->add_option("--seed", options->seed, "Seed of all random choices")->capture_default_str();
    command->callback([options] { train(*options); });
}

}  // namespace kvcodec
