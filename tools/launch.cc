#include "tools/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <vector>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/error.h"
#include "tools/plugin_path.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

// The scalar codec's smallest: 3 bits a number and 8 a vector, 19.1 % at head_dim 128. Below, only a dictionary serves.
constexpr double kScalarRate = 0.19;

std::string from_environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
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

}  // namespace

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

void add_launch_options(CLI::App& command, LaunchOptions& options) {
    command.add_option("--artifact", options.artifact, "Trained dictionaries [default: those in the cache folder]");
    command.add_option("--budget", options.budget,
                       "Size of the codes: a share of the f16 cache such as 20%, bytes of a token such as 2.5KiB, or "
                       "of the whole cache at so many tokens such as 1GiB@32768");
    command.add_option("--codec", options.codec,
                       "auto, scalar, transform, dictionary, none, or a baseline: token, kivi, turboquant, zipcache, "
                       "h2o, snapkv, pyramidkv");
    command.add_option("--window", options.window, "Recent tokens kept dense");
    command.add_option("--sinks", options.sinks, "First tokens kept dense");
    command.add_option("--mode", options.mode, "live, or strict: everything is read through its code");
    command.add_option("--plugin", options.plugin,
                       fmt::format("Path of {} [default: found beside kvcodec]", kPluginName));
    command.add_option("--device", options.device, "Name of the plug-in's device")->capture_default_str();
}

Options merge_options(const LaunchOptions& launch) {
    std::string flags;
    const auto put = [&](std::string_view key, const std::string& value) {
        if (!value.empty()) {
            flags += fmt::format(",{}={}", key, value);
        }
    };
    if (launch.artifact.find(',') != std::string::npos) {
        throw CLI::ValidationError("--artifact", "the path must not contain a comma");
    }
    put("artifact", launch.artifact.empty() ? "" : fs::absolute(launch.artifact).native());
    put("budget", launch.budget);
    put("codec", launch.codec);
    put("window", launch.window);
    put("sinks", launch.sinks);
    put("mode", launch.mode);
    try {
        parse_options(flags);
    } catch (const Error& error) {
        throw CLI::ValidationError("kvcodec", error.what());
    }
    Options options = parse_options(from_environment("KVCODEC") + flags);
    if (!launch.budget.empty()) {  // a budget replaces the sizes that the environment fixes
        options.s_k = options.s_v = options.bits_k = options.bits_v = std::nullopt;
    }
    return options;
}

std::string choose_codec(Options& options, const std::optional<std::string>& path) {
    using Choice = Options::CodecChoice;
    if (options.codec == Choice::kNone || options.is_baseline()) {  // these use no artifact
        return {};
    }
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

std::string prepare_environment(HostProgram& program, const LaunchOptions& launch, const Options& options) {
    std::string text;
    const auto set = [&](const char* name, const std::string& value) {
        if (::setenv(name, value.c_str(), 1) != 0) {
            throw Error(fmt::format("cannot set {}: {}", name, std::strerror(errno)));
        }
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, value);
    };
    set("KVCODEC", to_string(options));
    if (!launch.plugin.empty() || std::getenv("GGML_BACKEND_PATH") == nullptr) {
        set("GGML_BACKEND_PATH", find_plugin(launch.plugin));
    }
    struct Setting {
        const char* variable;
        std::string value;
        std::vector<std::string_view> flags;  // the flags that set the same
        const char* bench_value;              // of its last flag, for llama-bench; null: it has none
    };
    const std::array<Setting, 4> settings = {{
        {"LLAMA_ARG_DEVICE", launch.device, {"--device", "-dev"}, launch.device.c_str()},
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

}  // namespace kvcodec
