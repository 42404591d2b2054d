// `kvcodec bench`: attention over codes and encoding against the limits of this machine and against rivals, on random
// data.
#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bench/bench_layers.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/attend/attention.h"
#include "kvcodec/error.h"
#include "kvcodec/half.h"
#include "kvcodec/target.h"
#include "kvcodec/threads.h"
#include "tools/bench/host_attention.h"
#include "tools/bench/machine_limits.h"
#include "tools/bench/omp_rival.h"
#include "tools/bench/timing.h"
#include "tools/commands.h"
#include "tools/cpu_name.h"
#include "tools/eval/statistics.h"
#include "tools/progress.h"

namespace kvcodec {

namespace {

constexpr size_t kBlock = LayerStore::kBlock;

struct BenchOptions {
    std::string model;
    size_t depth = 8192;
    size_t prompt = 512;
    size_t n_layers = 4;
    size_t n_repeats = 7;
    size_t n_threads = std::max(1U, std::thread::hardware_concurrency());
    std::string python = "python3";

    /// Slopes are taken from here to `depth`.
    size_t shallow() const { return depth / 4; }
};

/// Seconds of the last of several runs. The first ones, uncounted, bring back what others have driven out of the caches
/// and give the system time to spread new threads over the processors: a program that generates text is past both.
template <typename Work>
double seconds_when_warm(const Work& work) {
    constexpr double kWarmUp = 0.03;
    for (double spent = 0; spent < kWarmUp;) {
        spent += seconds_of(work);
    }
    return seconds_of(work);
}

/// Threads that wait spinning for the next piece of work, as the host's do in the midst of a graph.
class SpinningTeam {
  public:
    explicit SpinningTeam(size_t size) : size_(size) {}

    double seconds_when_warm(const std::function<void(Team&)>& work) {
        std::vector<std::jthread> threads;
        for (size_t member = 1; member < size_; ++member) {
            threads.emplace_back([this, member] { team_.serve(member, size_); });
        }
        double seconds = 0;
        team_.lead(size_, [&] { seconds = kvcodec::seconds_when_warm([&] { work(team_); }); });
        return seconds;
    }

  private:
    size_t size_;
    BorrowedTeam team_;
};

/// The last n_tokens of n_cells see what lies before them and themselves. [n_tokens, n_cells]
std::vector<uint16_t> causal_mask(size_t n_tokens, size_t n_cells) {
    const uint16_t hidden = float_to_half(-INFINITY);
    std::vector<uint16_t> mask(n_tokens * n_cells, 0);
    for (size_t token = 0; token < n_tokens; ++token) {
        const size_t visible = n_cells - n_tokens + token + 1;
        std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(token * n_cells + visible), n_cells - visible, hidden);
    }
    return mask;
}

/// One kind of cache, with as many layers as are read one after the other.
struct Contender {
    std::string name;
    double bytes = 0;             ///< of K and V of a token in one layer
    double multiply_adds = 0;     ///< that one token's attention needs for each cell of one layer; 0: not counted
    double nonzeros = 0;          ///< elements of code space that they touch; 0: there is no code space
    std::function<double()> run;  ///< attention of all layers; returns the seconds
    std::vector<float> seconds = {};

    double time(size_t n_layers) const { return quantile(seconds, 0.5) / static_cast<double>(n_layers); }
};

/// Everybody once, then everybody again: whatever slows the machine down slows all of them.
void take_turns(std::vector<Contender>& contenders, size_t n_repeats, Progress& progress) {
    // OpenMP's threads, which the host may use, spin for a while after their work and would take the processor from
    // others.
    constexpr std::chrono::milliseconds kPause(30);
    for (size_t i = 0; i < n_repeats; ++i) {
        for (Contender& contender : contenders) {
            std::this_thread::sleep_for(kPause);
            contender.seconds.push_back(static_cast<float>(contender.run()));
        }
        progress.update(i + 1, n_repeats);
    }
}

struct NumberedCodec {
    int64_t number;
    const char* name;
    bool rebuilt = false;  ///< every row is rebuilt before it is used, as the published formula does
};
constexpr std::array<NumberedCodec, 9> kCodecs = {{{3, "scalar, 3 bits"},
                                                   {2, "scalar, 2 bits"},
                                                   {kTransform, "transform"},
                                                   {kJointTransform, "transform, heads together"},
                                                   {1, "dictionary, s=14"},
                                                   {0, "dictionary, s=8"},
                                                   {0, "dictionary, s=8, rebuilt", true},
                                                   {kLatent, "latents, 8 bits"},
                                                   {kJointLatent, "latents, heads together"}}};

/// What attention of one token must multiply for each cell, K and V of all heads.
double multiply_adds_of(const LayerCodecs& codecs, const NumberedCodec& kind, const BenchShape& shape) {
    const auto side = [&](const Codec& codec) {
        const auto reads = static_cast<double>(shape.n_head());
        if (codec.space() > 0 && !kind.rebuilt) {
            return reads * static_cast<double>(codec.nonzeros());
        }
        // Rebuilt once for each KV head: elements of a code times dim.
        const size_t coded = codec.joint_heads() * shape.dim;
        const bool latent = kind.number == kLatent || kind.number == kJointLatent;
        const auto elements = static_cast<double>(kind.rebuilt ? codec.nonzeros() : latent ? codecs.v->space() : coded);
        return static_cast<double>(shape.row()) * elements + reads * static_cast<double>(shape.dim);
    };
    return side(*codecs.k) + side(*codecs.v);
}

struct Layers {
    std::vector<std::unique_ptr<CodedLayer>> layers;
    std::vector<AttentionCall> calls;
    std::vector<float> out;
    Attention attention;
};

struct Inputs {
    std::vector<float> k, v, q;
    std::vector<uint16_t> mask;
};

std::vector<Contender> make_contenders(const BenchShape& shape, size_t n_cells, size_t n_tokens, const Inputs& inputs,
                                       const BenchOptions& options, SpinningTeam& team) {
    std::vector<Contender> contenders;
    const auto elements = static_cast<double>(2 * shape.row());
    std::vector<float> k(n_cells * shape.row()), v(k.size());
    for (size_t i = 0; i < k.size(); ++i) {
        k[i] = inputs.k[i % inputs.k.size()];
        v[i] = inputs.v[i % inputs.v.size()];
    }
    for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        const auto host = std::make_shared<HostAttention>(type, shape, n_cells, n_tokens, options.n_layers,
                                                          options.n_threads, k, v, inputs.q, inputs.mask);
        contenders.push_back(
            {fmt::format("llama.cpp {}", ggml_type_name(type)),
             elements * static_cast<double>(ggml_type_size(type)) / static_cast<double>(ggml_blck_size(type)),
             static_cast<double>(shape.n_head() * 2 * shape.dim), 0,
             [host] { return seconds_when_warm([&] { host->run(); }); }});
    }
    for (const NumberedCodec& codec : kCodecs) {
        if (!has_layer_codecs(codec.number, shape)) {
            continue;
        }
        const LayerCodecs codecs = layer_codecs(codec.number, shape);
        const auto coded = std::make_shared<Layers>();
        coded->attention = Attention(codec.rebuilt ? INT32_MAX : -1);
        coded->out.resize(n_tokens * shape.n_head() * shape.dim);
        for (size_t layer = 0; layer < options.n_layers; ++layer) {
            coded->layers.push_back(std::make_unique<CodedLayer>(shape, codecs, n_cells, inputs.k, inputs.v));
            coded->calls.push_back(coded->layers.back()->call(inputs.q, inputs.mask, coded->out));
        }
        const bool in_code_space =
            codecs.k->space() > 0 && coded->attention.in_code_space(coded->layers[0]->store(), coded->calls[0]);
        contenders.push_back(
            {codec.name, static_cast<double>(coded->layers[0]->store().code_bytes_per_token()),
             multiply_adds_of(codecs, codec, shape),
             in_code_space ? static_cast<double>((codecs.k->nonzeros() + codecs.v->nonzeros()) * shape.n_head()) : 0.0,
             [coded, &team] {
                 return team.seconds_when_warm([&](Team& members) {
                     for (size_t layer = 0; layer < coded->layers.size(); ++layer) {
                         coded->attention.run(coded->layers[layer]->store(), coded->calls[layer], members);
                     }
                 });
             }});
    }
    return contenders;
}

struct Summary {
    double slope_ratio = 0;
    double prompt_ratio = 0;
    double roofline_share = 0;
};
constexpr const char* kSummarised = "scalar, 3 bits";

std::vector<Contender> measure(const BenchShape& shape, size_t n_cells, size_t n_tokens, const BenchOptions& options) {
    Inputs inputs{random_rows(kBlock * shape.row(), 4), random_rows(kBlock * shape.row(), 7),
                  random_rows(n_tokens * shape.n_head() * shape.dim, 5), causal_mask(n_tokens, n_cells)};
    SpinningTeam team(options.n_threads);
    Progress progress(fmt::format("{} tokens over {} cells", n_tokens, n_cells));
    std::vector<Contender> contenders = make_contenders(shape, n_cells, n_tokens, inputs, options, team);
    take_turns(contenders, options.n_repeats, progress);
    progress.finish(fmt::format("{} caches", contenders.size()));
    return contenders;
}

Summary report_attention(const BenchShape& shape, const MachineLimits& limits, const BenchOptions& options) {
    const std::vector<Contender> few = measure(shape, options.shallow(), 1, options);
    const std::vector<Contender> many = measure(shape, options.depth, 1, options);
    const std::vector<Contender> prompt = measure(shape, options.depth, options.prompt, options);
    fmt::print(
        "\n## head_dim {}, {} KV heads, {} query heads for each\n\n| cache | bytes of a token | % of f16 | time of a "
        "token, µs | slope, ns a cell | slope / f16 | GB/s | ns a nonzero | roofline, ns a cell | share of it | prompt "
        "of {}, ms | prompt / f16 |\n|{}\n",
        shape.dim, shape.n_head_kv, shape.group, options.prompt, [] {
            std::string line;
            for (int i = 0; i < 12; ++i) {
                line += " --- |";
            }
            return line;
        }());
    const auto slope = [&](size_t i) {
        return (many[i].time(options.n_layers) - few[i].time(options.n_layers)) /
               static_cast<double>(options.depth - options.shallow());
    };
    Summary summary;
    for (size_t i = 0; i < many.size(); ++i) {
        const Contender& c = many[i];
        const double ns = 1e9 * slope(i), cells = static_cast<double>(options.depth);
        const double limit = 1e9 * std::max(c.bytes / limits.read_bytes, c.multiply_adds / limits.multiply_adds);
        const double share = limit / ns;
        const double prompt_ratio = prompt[i].time(options.n_layers) / prompt[0].time(options.n_layers);
        fmt::print(
            "| {} | {:.0f} | {:.1f} % | {:.0f} | {:.1f} | {:.2f} | {:.2f} | {} | {:.1f} | {:.0f} % | {:.1f} | "
            "{:.2f} |\n",
            c.name, c.bytes, 100 * c.bytes / many[0].bytes, 1e6 * c.time(options.n_layers), ns, slope(i) / slope(0),
            cells * c.bytes / c.time(options.n_layers) / 1e9,
            c.nonzeros > 0 ? fmt::format("{:.3f}", ns / c.nonzeros) : "", limit, 100 * share,
            1e3 * prompt[i].time(options.n_layers), prompt_ratio);
        if (c.name == kSummarised) {
            summary = {slope(i) / slope(0), prompt_ratio, share};
        }
    }
    return summary;
}

/// One thread. Returns our time over SPAMS', where there is SPAMS.
std::optional<double> report_encoding(const std::vector<BenchShape>& shapes, const BenchOptions& options) {
    constexpr size_t kVectors = 4096;
    constexpr size_t kAtoms = 1024;
    constexpr size_t kSparsity = 8;
    fmt::print(
        "\n## Encoding, one thread, {} vectors\n\n| head_dim | encoder | µs a vector | relative loss | / SPAMS "
        "|\n| --- | --- | --- | --- | --- |\n",
        kVectors);
    std::optional<double> ratio;
    for (const BenchShape& shape : shapes) {
        const std::vector<float> atoms = random_atoms(kAtoms, shape.dim), x = random_rows(kVectors * shape.dim, 2);
        const OmpRun own = run_own_omp(atoms, x, shape.dim, kSparsity);
        const std::optional<OmpRun> spams = run_spams(options.python, atoms, x, shape.dim, kSparsity);
        if (spams && !ratio) {
            ratio = own.seconds / spams->seconds;
        }
        fmt::print("| {} | OMP, {} atoms, s={} | {:.2f} | {:.4f} | {} |\n", shape.dim, kAtoms, kSparsity,
                   1e6 * own.seconds, own.loss, spams ? fmt::format("{:.2f}", own.seconds / spams->seconds) : "");
        if (spams) {
            fmt::print("| {} | SPAMS' OMP | {:.2f} | {:.4f} | 1.00 |\n", shape.dim, 1e6 * spams->seconds, spams->loss);
        }
        for (const int64_t number : {int64_t{3}, int64_t{2}, kTransform}) {
            const auto codec = bench_codec(number, shape.dim);
            std::vector<std::byte> codes(kVectors * codec->code_bytes() + Codec::kCodeSlackBytes);
            std::vector<float> seconds;
            for (size_t i = 0; i < options.n_repeats; ++i) {
                seconds.push_back(
                    static_cast<float>(seconds_of([&] { codec->encode(x.data(), kVectors, codes.data()); })));
            }
            fmt::print("| {} | {} | {:.2f} |  |  |\n", shape.dim, codec->describe(),
                       1e6 * quantile(seconds, 0.5) / static_cast<double>(kVectors));
        }
    }
    return ratio;
}

std::vector<BenchShape> shapes_of(const BenchOptions& options) {
    if (options.model.empty()) {
        return {kShapes.begin(), kShapes.end()};
    }
    const ModelInfo model = read_model_info(options.model);
    for (uint32_t layer = 0; layer < model.n_layer; ++layer) {
        const uint32_t n_head_kv = model.n_head_kv[layer];
        if (n_head_kv == 0) {
            continue;  // recurrent
        }
        if (model.head_dim_k != model.head_dim_v) {
            throw Error(fmt::format("{} has K and V of different head sizes, which this benchmark does not know",
                                    options.model));
        }
        return {{model.head_dim_k, n_head_kv, model.n_head[layer] / n_head_kv}};
    }
    throw Error(fmt::format("{} has no attention layer", options.model));
}

void bench(const BenchOptions& options) {
    const std::vector<BenchShape> shapes = shapes_of(options);
    const MachineLimits limits = measure_limits(options.n_threads);
    fmt::print(
        "{}, {} threads, kernels for {}: {:.1f} GB/s read from memory, {:.0f} billion multiply-adds a second.\n"
        "Attention of one layer over {} coded cells of random data, every cell read, {} layers in turn, medians of {}. "
        "Slope: from {} cells on. Roofline: the larger of what reading the codes and the multiplications of the method "
        "(of the real heads, in single precision) take at these limits.\n",
        cpu_name(), options.n_threads, target_name(), limits.read_bytes / 1e9, limits.multiply_adds / 1e9,
        options.depth, options.n_layers, options.n_repeats, options.shallow());
    std::vector<Summary> summaries;
    for (const BenchShape& shape : shapes) {
        summaries.push_back(report_attention(shape, limits, options));
    }
    const std::optional<double> omp_ratio = report_encoding(shapes, options);
    fmt::print("\n");
    for (size_t i = 0; i < shapes.size(); ++i) {
        fmt::print("{}, head_dim {}: slope / f16 {:.2f}, prompt / f16 {:.2f}, {:.0f} % of the roofline; ", kSummarised,
                   shapes[i].dim, summaries[i].slope_ratio, summaries[i].prompt_ratio,
                   100 * summaries[i].roofline_share);
    }
    fmt::print("OMP / SPAMS {}\n",
               omp_ratio ? fmt::format("{:.2f}", *omp_ratio) : "not measured (pip install spams-bin, or --python)");
}

}  // namespace

void add_bench_command(CLI::App& app) {
    auto options = std::make_shared<BenchOptions>();
    CLI::App* command = app.add_subcommand(
        "bench", "Time attention over codes and encoding against llama.cpp and the machine's limits");
    command
        ->add_option("-m,--model", options->model,
                     "Take the shape of this model's first attention layer instead of two usual ones")
        ->check(CLI::ExistingFile);
    command->add_option("--depth", options->depth, "Cached tokens, in steps of 256")
        ->check(CLI::Range(1024, 1 << 20))
        ->capture_default_str();
    command->add_option("--prompt", options->prompt, "Tokens of a prompt that are computed at once")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    command->add_option("--layers", options->n_layers, "Layers that are read one after the other")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command->add_option("--repeat", options->n_repeats, "Times that everything is measured")
        ->check(CLI::Range(1, 10000))
        ->capture_default_str();
    command->add_option("--threads", options->n_threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--python", options->python, "Python with SPAMS (PyPI: spams-bin), to compare encoding with")
        ->capture_default_str();
    command->footer(
        "Prints Markdown tables; the last line is the summary. Whole models are timed by `kvcodec eval --suite "
        "speed`.\n\n"
        "Example: kvcodec bench --depth 16384 --threads 1");
    command->callback([options] {
        options->depth = options->depth / 256 * 256;
        bench(*options);
    });
}

}  // namespace kvcodec
