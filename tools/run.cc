// `kvcodec run`: starts a llama.cpp program with the plug-in loaded and an artifact chosen for its model.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/error.h"
#include "kvcodec/options.h"
#include "tools/commands.h"
#include "tools/host_program.h"
#include "tools/plugin_path.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

constexpr int kNotExecutable = 126;
constexpr int kNotFound = 127;
// The scalar codec's smallest: 3 bits a number and 8 a vector, 19.1 % at head_dim 128. Below, only a dictionary serves.
constexpr double kScalarRate = 0.19;

struct RunOptions {
    std::string artifact;
    std::string budget;
    std::string codec;
    std::string window;
    std::string sinks;
    std::string mode;
    std::string plugin;
    std::string device = "KVCODEC";
};

std::string from_environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

/// To stderr, whether that is open or not.
void print_message(const std::string& message) {
    std::fprintf(stderr, "kvcodec: %s\n", message.c_str());
}

/// KVCODEC as the user set it, with the command line's choices on top.
Options merge_options(const RunOptions& run) {
    std::string flags;
    const auto put = [&](std::string_view key, const std::string& value) {
        if (!value.empty()) {
            flags += fmt::format(",{}={}", key, value);
        }
    };
    if (run.artifact.find(',') != std::string::npos) {
        throw CLI::ValidationError("--artifact", "the path must not contain a comma");
    }
    put("artifact", run.artifact.empty() ? "" : fs::absolute(run.artifact).native());
    put("budget", run.budget);
    put("codec", run.codec);
    put("window", run.window);
    put("sinks", run.sinks);
    put("mode", run.mode);
    try {
        parse_options(flags);
    } catch (const Error& error) {
        throw CLI::ValidationError("kvcodec run", error.what());
    }
    Options options = parse_options(from_environment("KVCODEC") + flags);
    if (!run.budget.empty()) {  // a budget replaces the sizes that the environment fixes
        options.s_k = options.s_v = options.bits_k = options.bits_v = std::nullopt;
    }
    return options;
}

std::string shell_quoted(const std::string& word) {
    const auto is_plain = [](unsigned char c) {
        return std::isalnum(c) != 0 || std::strchr("_-./:=+@%,", c) != nullptr;
    };
    if (!word.empty() && std::ranges::all_of(word, is_plain)) {
        return word;
    }
    std::string quoted = "'";
    for (const char c : word) {
        quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    }
    return quoted + "'";
}

void check_artifact(const Options& options, const std::optional<ModelInfo>& model, std::string_view train_command) {
    const Artifact artifact = read_artifact(options.artifact);
    if (model && artifact.model_fingerprint != model->fingerprint) {
        throw Error(
            fmt::format("{} was made for another model: it is for {} ({}), the program's model is {} ({}); "
                        "leave --artifact out or make the right one with: {}",
                        options.artifact, artifact.model_name, artifact.model_fingerprint, model->name,
                        model->fingerprint, train_command));
    }
}

/// Fills in artifact and codec for the program's model. Returns what the user should know about the choice.
std::string choose_codec(Options& options, const HostProgram& program) {
    using Choice = Options::CodecChoice;
    if (options.codec == Choice::kNone || options.is_baseline()) {  // these use no artifact
        return {};
    }
    const auto path = program.find_model();
    const std::string train_command = fmt::format("kvcodec train -m {}", path ? shell_quoted(*path) : "MODEL.gguf");
    std::optional<ModelInfo> model;
    if (path) {
        model = read_model_info(*path);
    }
    if (options.artifact.empty() && model) {
        options.artifact = find_artifact(model->fingerprint).value_or("");
    }
    if (!options.artifact.empty()) {
        check_artifact(options, model, train_command);
        return model ? "" : "the model's file is not known, so the artifact cannot be checked against it";
    }
    if (options.codec == Choice::kDictionary) {
        throw Error(
            fmt::format("the dictionary codec needs an artifact for the model; make one with: {}", train_command));
    }
    if (options.codec == Choice::kAuto && options.budget && *options.budget < kScalarRate) {
        throw Error(
            fmt::format("a budget of {:.4g}% needs an artifact, without one the scalar codec ends at 3 bits (about "
                        "19%); make one with: {}",
                        100 * *options.budget, train_command));
    }
    return model ? fmt::format(
                       "no artifact for {}: using the scalar codec without calibration; for better quality "
                       "and a smaller cache: {}",
                       model->name, train_command)
                 : "no model file found in the arguments (-m): using the scalar codec without calibration; "
                   "--artifact names one";
}

/// Sets what the program needs, apart from what the user has set already. Returns the settings as text.
std::string prepare(HostProgram& program, const RunOptions& run, const Options& options) {
    std::string text;
    const auto set = [&](const char* name, const std::string& value) {
        if (::setenv(name, value.c_str(), 1) != 0) {
            throw Error(fmt::format("cannot set {}: {}", name, std::strerror(errno)));
        }
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, value);
    };
    set("KVCODEC", to_string(options));
    if (!run.plugin.empty() || std::getenv("GGML_BACKEND_PATH") == nullptr) {
        set("GGML_BACKEND_PATH", find_plugin(run.plugin));
    }
    struct Setting {
        const char* variable;
        std::string value;
        std::vector<std::string_view> flags;  // the flags that set the same
        const char* bench_value;              // of its last flag, for llama-bench; null: it has none
    };
    const std::array<Setting, 4> settings = {{
        {"LLAMA_ARG_DEVICE", run.device, {"--device", "-dev"}, run.device.c_str()},
        {"LLAMA_ARG_FLASH_ATTN", "on", {"--flash-attn", "-fa"}, "1"},
        {"LLAMA_ARG_CACHE_RAM", "0", {"--cache-ram", "-cram"}, nullptr},
        {"LLAMA_ARG_MMPROJ_OFFLOAD", "0", {"--mmproj-offload", "--no-mmproj-offload"}, nullptr},
    }};
    for (const Setting& setting : settings) {
        if (program.has_flag(setting.flags)) {
            continue;
        }
        if (!program.is_bench()) {
            if (std::getenv(setting.variable) == nullptr) {
                set(setting.variable, setting.value);
            }
        } else if (setting.bench_value != nullptr) {
            program.append(setting.flags.back(), setting.bench_value);
            text += fmt::format(" {} {}", setting.flags.back(), setting.bench_value);
        }
    }
    return text;
}

/// Becomes the program; returns only by throwing.
[[noreturn]] void execute(const HostProgram& program) {
    std::vector<std::string> words = program.argv();
    std::vector<char*> argv;
    for (std::string& word : words) {
        argv.push_back(word.data());
    }
    argv.push_back(nullptr);
    ::execvp(argv.front(), argv.data());
    const int reason = errno;
    print_message(fmt::format("cannot start {}: {}; give its path or add its folder to PATH", words.front(),
                              std::strerror(reason)));
    throw CLI::RuntimeError(reason == ENOENT ? kNotFound : kNotExecutable);
}

void run_program(const RunOptions& run, const std::vector<std::string>& argv) {
    if (argv.empty()) {
        throw CLI::ValidationError("kvcodec run", "no program given; write -- and the program behind the options");
    }
    HostProgram program(argv);
    Options options = merge_options(run);
    program.check_layers_reach(run.device);
    const std::string note = choose_codec(options, program);
    const std::string settings = prepare(program, run, options);
    if (options.log != Options::Log::kQuiet) {
        if (!note.empty()) {
            print_message(note);
        }
        print_message(settings);
    }
    execute(program);
}

}  // namespace

void add_run_command(CLI::App& app, std::vector<std::string> program) {
    auto options = std::make_shared<RunOptions>();
    CLI::App* command = app.add_subcommand(
        "run", "Start a llama.cpp program with a compressed KV cache: run [OPTIONS] -- PROGRAM [ARGUMENTS...]");
    command->add_option("--artifact", options->artifact, "Trained dictionaries [default: those in the cache folder]");
    command->add_option("--budget", options->budget,
                        "Size of the codes: a share of the f16 cache such as 20%, bytes of a token such as 2.5KiB, or "
                        "of the whole cache at so many tokens such as 1GiB@32768");
    command->add_option("--codec", options->codec,
                        "auto, scalar, transform, dictionary, none, or a baseline: token, kivi, turboquant, zipcache, "
                        "h2o, snapkv, pyramidkv");
    command->add_option("--window", options->window, "Recent tokens kept dense");
    command->add_option("--sinks", options->sinks, "First tokens kept dense");
    command->add_option("--mode", options->mode, "live, or strict: everything is read through its code");
    command->add_option("--plugin", options->plugin,
                        fmt::format("Path of {} [default: found beside kvcodec]", kPluginName));
    command->add_option("--device", options->device, "Name of the plug-in's device")->capture_default_str();
    command->footer(
        "Sets KVCODEC, GGML_BACKEND_PATH, LLAMA_ARG_DEVICE, LLAMA_ARG_FLASH_ATTN=on, LLAMA_ARG_CACHE_RAM=0 and\n"
        "LLAMA_ARG_MMPROJ_OFFLOAD=0 unless they are set, prints them and becomes the program. llama-bench ignores "
        "such\n"
        "variables: -dev and -fa 1 are added to its arguments instead. KVCODEC holds further choices (s_k, bits_v, "
        "...);\n"
        "options given here win.\n\n"
        "Exit codes: 0 success, 1 failure, 2 wrong usage, 126 program not executable, 127 program not found; otherwise "
        "the\n"
        "program's own.\n\n"
        "Example: kvcodec run --budget 20% -- llama-server -m model.gguf");
    command->allow_extras();
    command->callback([command, options, program = std::move(program)] {
        if (const auto extras = command->remaining(); !extras.empty()) {
            throw CLI::ValidationError("kvcodec run",
                                       fmt::format("unexpected '{}'; the program goes behind --", extras.front()));
        }
        run_program(*options, program);
    });
}

}  // namespace kvcodec
