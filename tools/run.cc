// `kvcodec run`: starts a llama.cpp program with the plug-in loaded and an artifact chosen for its model.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvcodec/options.h"
#include "tools/commands.h"
#include "tools/host_program.h"
#include "tools/launch.h"

namespace kvcodec {

namespace {

constexpr int kNotExecutable = 126;
constexpr int kNotFound = 127;

/// To stderr, whether that is open or not.
void print_message(const std::string& message) {
    std::fprintf(stderr, "kvcodec: %s\n", message.c_str());
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

void run_program(const LaunchOptions& launch, const std::vector<std::string>& argv) {
    if (argv.empty()) {
        throw CLI::ValidationError("kvcodec run", "no program given; write -- and the program behind the options");
    }
    HostProgram program(argv);
    Options options = merge_options(launch);
    program.check_layers_reach(launch.device);
    const std::string note = choose_codec(options, program.find_model());
    const std::string settings = prepare_environment(program, launch, options);
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
    auto options = std::make_shared<LaunchOptions>();
    CLI::App* command = app.add_subcommand(
        "run", "Start a llama.cpp program with a compressed KV cache: run [OPTIONS] -- PROGRAM [ARGUMENTS...]");
    add_launch_options(*command, *options);
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
