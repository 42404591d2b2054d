// `kvcodec eval`: fidelity and cost of caches, measured in the program that users run.
#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <memory>
#include <string_view>
#include <thread>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/error.h"
#include "tools/commands.h"
#include "tools/cpu_name.h"
#include "tools/eval/evaluation.h"
#include "tools/eval/report.h"
#include "tools/plugin_path.h"
#include "tools/progress.h"

namespace kvcodec {

namespace {

struct Suite {
    std::string_view name;
    void (*run)(Evaluation&);
    std::string_view help;
};

constexpr Suite kSuites[] = {
    {"kld", run_kld, "KL divergence from the f16 cache over --text, at each --ctx-size"},
    {"solutions", run_solutions, "the same over f16's own answers to --problems"},
    {"recon", run_recon, "error of coded vectors, layer by layer, over --text"},
    {"gsm8k", run_gsm8k, "--problems with --examples before each, greedy, as lm-evaluation-harness scores them"},
    {"retrieval", run_retrieval, "a value by its key; the project's own lists, or those of --tasks"},
    {"needle", run_needle, "a sentence hidden in --text, by depth and --ctx-size"},
    {"ruler", run_ruler, "variable tracking and frequent words, at each --ctx-size"},
    {"longbench", run_longbench, "--tasks in LongBench's form"},
    {"choice", run_choice, "--tasks in MMLU-Pro's form"},
    {"generate", run_generate, "answers of all caches to each --prompt, side by side"},
    {"speed", run_speed, "latency against depth, prompts, parallel sequences"},
    {"components", run_components, "where the time of a step's attention goes, at the deepest of --depths"},
};

std::string today() {
    const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    std::array<char, 16> text{};
    std::strftime(text.data(), text.size(), "%Y-%m-%d", std::gmtime(&now));
    return text.data();
}

void write_reports(const EvalOptions& options, const Json& document) {
    if (!options.html.empty()) {
        write_whole_file(options.html, html_report(document));
    }
    if (!options.svg.empty()) {
        write_whole_file(options.svg, kld_curve(document) + "\n");
    }
}

// Hours of work must not end at a missing file, or at one that cannot be written.
void check_files(const EvalOptions& options) {
    for (const std::string& path : {options.json, options.html, options.svg}) {
        if (path.empty()) {
            continue;
        }
        if (const auto folder = std::filesystem::absolute(path).parent_path(); !std::filesystem::is_directory(folder)) {
            throw Error(fmt::format("{} cannot be written: there is no folder {}", path, folder.native()));
        }
    }
    const auto wants = [&](std::string_view name) {
        return std::ranges::find(options.suites, name) != options.suites.end();
    };
    const auto require = [&](std::string_view suite, const std::string& file, std::string_view flag) {
        if (wants(suite) && file.empty()) {
            throw Error(fmt::format("the suite {} needs {} FILE", suite, flag));
        }
        if (wants(suite)) {
            file_checksum(file);
        }
    };
    for (const std::string_view suite : {"kld", "recon", "needle"}) {
        for (const std::string& text : options.texts.empty() ? std::vector<std::string>{""} : options.texts) {
            require(suite, text, "--text");
        }
    }
    require("solutions", options.problems, "--problems");
    require("gsm8k", options.problems, "--problems");
    require("longbench", options.tasks, "--tasks");
    require("choice", options.tasks, "--tasks");
    if (wants("gsm8k") && options.n_shots > 0) {
        require("gsm8k", options.examples, "--examples");
    }
    if (wants("generate") && options.prompts.empty()) {
        throw Error("the suite generate needs --prompt TEXT");
    }
}

void check_artifact(const std::string& path, const ModelInfo& model) {
    if (path.empty()) {
        return;
    }
    if (const Artifact artifact = read_artifact(path); artifact.model_fingerprint != model.fingerprint) {
        throw Error(fmt::format("{} was trained for {} ({}), the model is {} ({}); make one with `kvcodec train -m {}`",
                                path, artifact.model_name, artifact.model_fingerprint, model.name, model.fingerprint,
                                model.path));
    }
}

void eval(const EvalOptions& options) {
    std::vector<CacheSpec> caches = parse_caches(options.caches, options.artifacts, options.mode);
    std::erase_if(caches, [](const CacheSpec& spec) { return spec.is_reference(); });
    check_files(options);
    const bool needs_plugin = std::ranges::any_of(caches, &CacheSpec::plugin);
    const ModelInfo info = read_model_info(options.model);
    ResultStore results(options.json, {{"model", std::filesystem::path(options.model).filename().string()},
                                       {"fingerprint", info.fingerprint},
                                       {"cpu", cpu_name()},
                                       {"threads", options.n_threads},
                                       {"ggml", ggml_version()},
                                       {"kvcodec", KVCODEC_VERSION},
                                       {"date", today()}});
    for (const CacheSpec& cache : caches) {
        check_artifact(cache.artifact, info);
    }
    const InterruptGuard guard;
    const EvalHost host(options.model, needs_plugin ? find_plugin(options.plugin) : "", options.n_threads);
    Evaluation evaluation{options, host, std::move(caches), results};
    for (const Suite& suite : kSuites) {
        if (std::ranges::find(options.suites, suite.name) != options.suites.end()) {
            suite.run(evaluation);
            write_reports(options, results.document());
        }
    }
    fmt::print("{}", markdown_report(results.document()));
}

}  // namespace

void add_eval_command(CLI::App& app) {
    auto options = std::make_shared<EvalOptions>();
    options->n_threads = std::max(1U, std::thread::hardware_concurrency());
    options->caches = "q8_0,q4_0,kvcodec:26%:sinks=4,kvcodec:20%:sinks=4";
    options->suites = {"kld"};
    options->n_ctx = {2048};
    options->depths = {0, 1024, 2048, 4096};
    options->sequences = {1, 2, 4, 8, 16};
    CLI::App* command = app.add_subcommand("eval", "Measure fidelity and cost of caches against f16");
    command->add_option("-m,--model", options->model, "Model (GGUF)")->required()->check(CLI::ExistingFile);
    command->add_option("-a,--artifact", options->artifacts, "Artifacts; each is tried with every kvcodec cache")
        ->check(CLI::ExistingFile);
    command
        ->add_option("--cache", options->caches,
                     "List of caches: llama.cpp's types, pairs of them (q8_0/q4_0 for K/V), kvcodec:20%, or "
                     "kvcodec:KEY=VALUE:... with the keys of KVCODEC")
        ->capture_default_str();
    std::string suites;
    std::vector<std::string> names;
    for (const Suite& suite : kSuites) {
        suites += fmt::format("  {:<10} {}\n", suite.name, suite.help);
        names.emplace_back(suite.name);
    }
    command->add_option("--suite", options->suites, "Suites to run, see below")
        ->check(CLI::IsMember(names))
        ->delimiter(',')
        ->capture_default_str();
    command->add_option("--mode", options->mode, "strict: everything is read through its code; live: as programs run")
        ->check(CLI::IsMember({"strict", "live"}))
        ->capture_default_str();
    command->add_option("--ctx-size", options->n_ctx, "Tokens of a context; several for several lengths")
        ->check(CLI::Range(64, 1 << 20))
        ->delimiter(',')
        ->capture_default_str();
    command->add_option("--chunks", options->n_chunks, "Contexts of text for kld and recon")
        ->check(CLI::Range(1, 100000))
        ->capture_default_str();
    command->add_option("--text", options->texts, "Text file; several are measured apart, e.g. in and out of domain")
        ->allow_extra_args(false);
    command->add_option("--problems", options->problems, "JSONL of \"question\" and \"answer\" (GSM8K)");
    command->add_option("--examples", options->examples, "JSONL of worked examples for gsm8k");
    command->add_option("--tasks", options->tasks, "JSONL of LongBench, MMLU-Pro or key-value retrieval tasks");
    command->add_option("-n,--problems-limit", options->n_problems, "Problems of a task suite")
        ->check(CLI::Range(1, 1'000'000))
        ->capture_default_str();
    command->add_option("--shots", options->n_shots, "Worked examples before each problem of gsm8k")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    command->add_option("--max-tokens", options->max_tokens, "Longest answer")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    command->add_option("--prompt", options->prompts, "A prompt for generate; may be repeated")
        ->allow_extra_args(false);
    command->add_option("--depths", options->depths, "Depths of the speed suite")
        ->check(CLI::Range(0, 1 << 20))
        ->delimiter(',')
        ->capture_default_str();
    command
        ->add_option("--sequences", options->sequences,
                     "Counts of sequences that the speed suite decodes side by side; 0: none")
        ->check(CLI::Range(0, 255))
        ->delimiter(',')
        ->capture_default_str();
    command->add_option("--parallel", options->n_parallel, "Answers generated side by side")
        ->check(CLI::Range(1, 255))
        ->capture_default_str();
    command->add_option("--together", options->together, "Caches compared side by side; more need more memory")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    command->add_option("--threads", options->n_threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--seed", options->seed, "Seed of generated tasks")->capture_default_str();
    command->add_option("--json", options->json, "File of results; those already in it are not measured again");
    command->add_option("--html", options->html, "Page to write");
    command->add_option("--svg", options->svg,
                        "Curve of KLD against rate to write; against the layer, where each cache has one (layers=N)");
    command->add_option("--plugin", options->plugin, "Path of the plug-in [default: found beside kvcodec]");
    command->footer(
        "Suites:\n" + suites +
        "\nA result whose keys were read through codes for less than 70 % of all pairs is refused: it would "
        "measure the dense window.\n\nExample: kvcodec eval -m model.gguf -a model.kvc.gguf --text book.txt "
        "--json results.json --html results.html");
    command->callback([options] {
        std::ranges::sort(options->n_ctx);
        std::ranges::sort(options->depths);
        std::erase(options->sequences, 0U);
        eval(*options);
    });
}

}  // namespace kvcodec
