// `kvcodec doctor`: whether a program's cache will be compressed and how far, and what to change where it is not.
#include <fmt/format.h>
#include <ggml.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/options.h"
#include "tools/commands.h"
#include "tools/eval/host.h"
#include "tools/eval/plugin_report.h"
#include "tools/host_model.h"
#include "tools/host_program.h"
#include "tools/launch.h"
#include "tools/plugin_path.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

struct DoctorOptions {
    LaunchOptions launch;
    std::string model;
    size_t n_ctx = 32768;
};

/// Lines of findings, as they are made.
class Findings {
  public:
    void good(const std::string& text) { fmt::print("ok     {}\n", text); }
    void note(const std::string& text) { fmt::print("note   {}\n", text); }
    void bad(const std::string& text) {
        fmt::print("WRONG  {}\n", text);
        all_good_ = false;
    }
    bool all_good() const { return all_good_; }

  private:
    bool all_good_ = true;
};

/// The file that the shell would start.
std::optional<fs::path> find_executable(const std::string& name) {
    const auto is_executable = [](const fs::path& file) {
        std::error_code error;
        return fs::is_regular_file(file, error) && ::access(file.c_str(), X_OK) == 0;
    };
    if (name.find('/') != std::string::npos) {
        return is_executable(name) ? std::optional<fs::path>(name) : std::nullopt;
    }
    const char* variable = std::getenv("PATH");
    const std::string folders = variable != nullptr ? variable : "";
    for (size_t begin = 0; begin <= folders.size();) {
        const size_t end = std::min(folders.find(':', begin), folders.size());
        const fs::path file = fs::path(folders.substr(begin, end - begin)) / name;
        if (is_executable(file)) {
            return file;
        }
        begin = end + 1;
    }
    return std::nullopt;
}

/// What a program prints when it is asked for its devices, errors too.
std::string list_devices(const fs::path& program) {
    FILE* pipe = ::popen((shell_quoted(program.native()) + " --list-devices 2>&1 < /dev/null").c_str(), "r");
    std::string output;
    std::array<char, 4096> buffer;
    while (pipe != nullptr) {
        const size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe);
        output.append(buffer.data(), n);
        if (n == 0) {
            ::pclose(pipe);
            break;
        }
    }
    return output;
}

/// The line of `text` that mentions `word`, or its last one.
std::string line_about(const std::string& text, std::string_view word) {
    std::string last;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string line = text.substr(begin, end - begin);
        if (line.find(word) != std::string::npos) {
            return line;
        }
        last = line.empty() ? last : line;
        begin = end + 1;
    }
    return last;
}

void examine_program(HostProgram& program, const LaunchOptions& launch, const Options& options, Findings& findings) {
    const std::string& name = program.argv().front();
    const std::optional<fs::path> file = find_executable(name);
    if (!file) {
        findings.bad(fmt::format("{} is no program; give its path or add its folder to PATH", name));
        return;
    }
    try {
        program.check_layers_reach(launch.device);
        findings.good("its arguments leave the cache to kvcodec");
    } catch (const Error& error) {
        findings.bad(error.what());
    }
    if (!file->filename().native().starts_with("llama-")) {
        findings.note(
            fmt::format("{} is none of llama.cpp's own programs: whether it loads plug-ins was not tried", name));
        return;
    }
    prepare_environment(program, launch, options);
    const std::string devices = list_devices(*file);
    ::unsetenv("GGML_BACKEND_PATH");  // or it would be loaded here a second time
    if (devices.find("  " + launch.device + ":") != std::string::npos) {
        findings.good(fmt::format("{} loads the plug-in", file->native()));
    } else {
        findings.bad(
            fmt::format("{} does not load the plug-in; build the plug-in for its llama.cpp (make plugin "
                        "LLAMA_SRC=...), and llama.cpp with shared libraries. It said: {}",
                        file->native(), line_about(devices, "kvcodec")));
    }
}

/// Runs the model for one token, after which the plug-in knows all layers.
void examine_model(const DoctorOptions& doctor, const std::string& model, const Options& options, Findings& findings) {
    const EvalHost host(model, find_plugin(doctor.launch.plugin), 1);
    const size_t n_warnings = plugin_warnings().size();
    CacheSpec spec;
    spec.name = "kvcodec";
    spec.plugin = true;
    spec.options = to_string(options) + ",log=quiet";
    const auto context = host.make_context(spec, {512, 64, 1});
    TokenBatch batch(1);
    batch.add(0, 0, 0, true);
    context->decode(batch);
    for (size_t i = n_warnings; i < plugin_warnings().size(); ++i) {
        findings.bad(plugin_warnings()[i]);
    }
    const Json report = context->report();
    std::map<std::string, size_t> codecs;
    for (const Json& codec : report.is_null() ? Json::array() : report["codecs"]) {
        ++codecs[codec.get<std::string>()];
    }
    const size_t n_passed = codecs.contains("f16") ? codecs["f16"] : 0;
    const size_t n_layers = report.is_null() ? 0 : report["codecs"].size();
    if (n_layers == n_passed) {
        findings.bad("no layer is compressed");
        return;
    }
    findings.good(fmt::format("{} of {} layers with a cache are compressed", n_layers - n_passed, n_layers));
    for (const auto& [codec, n] : codecs) {
        fmt::print("         {} {}: {}\n", n, n == 1 ? "layer" : "layers", codec);
    }
    const auto number = [&](const char* key) { return report[key].get<double>(); };
    const double f16 = number("f16_bytes"), code = number("code_bytes");
    const auto tokens = static_cast<double>(doctor.n_ctx);
    const double total = total_bytes(report, tokens);
    findings.good(fmt::format("a token takes {:.0f} bytes instead of {:.0f}: {:.1f} %", code, f16, 100 * code / f16));
    findings.good(
        fmt::format("{} tokens take {:.1f} MiB instead of {:.1f}: {:.1f} %, window, sinks and tables included",
                    doctor.n_ctx, total / kMiB, f16 * tokens / kMiB, 100 * total / (f16 * tokens)));
}

void examine(const DoctorOptions& doctor, const std::vector<std::string>& argv) {
    Findings findings;
    std::optional<HostProgram> program;
    if (!argv.empty()) {
        program.emplace(argv);
    }
    Options options = merge_options(doctor.launch);
    std::optional<std::string> model;
    if (!doctor.model.empty()) {
        model = doctor.model;
    } else if (program) {
        model = program->find_model();
    }
    try {
        findings.good(fmt::format("the plug-in is {}", find_plugin(doctor.launch.plugin)));
        if (const std::string note = choose_codec(options, model); !note.empty()) {
            findings.note(note);
        } else if (!options.artifact.empty()) {
            findings.good(fmt::format("the artifact is {}", options.artifact));
        }
        if (program) {
            examine_program(*program, doctor.launch, options, findings);
        }
        if (model) {
            examine_model(doctor, *model, options, findings);
        } else {
            findings.note("no model was tried; name its file with -m");
        }
    } catch (const Error& error) {
        findings.bad(error.what());
    }
    if (!findings.all_good()) {
        throw CLI::RuntimeError(EXIT_FAILURE);
    }
}

}  // namespace

void add_doctor_command(CLI::App& app, std::vector<std::string> program) {
    auto options = std::make_shared<DoctorOptions>();
    CLI::App* command = app.add_subcommand(
        "doctor", "Say whether a cache will be compressed: doctor [OPTIONS] [-- PROGRAM [ARGUMENTS...]]");
    command->add_option("-m,--model", options->model, "The model [default: the program's]")->check(CLI::ExistingFile);
    command->add_option("-c,--ctx-size", options->n_ctx, "Tokens that the memory is told for")
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    add_launch_options(*command, options->launch);
    command->footer(
        "Takes the options of `kvcodec run`. Asks the program for its devices, and runs the model for one token in "
        "this "
        "process.\n\n"
        "Exit codes: 0 all is well, 1 something is wrong, 2 wrong usage.\n\n"
        "Example: kvcodec doctor --budget 20% -- llama-server -m model.gguf");
    command->callback([options, program = std::move(program)] { examine(*options, program); });
}

}  // namespace kvcodec
