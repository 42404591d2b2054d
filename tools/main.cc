// The `kvcodec` command.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kvcodec/target.h"
#include "tools/commands.h"

namespace {

constexpr int kFailure = 1;
constexpr int kWrongUsage = 2;

int run(std::vector<std::string> arguments) {
    // The arguments of the program behind `run --` and `doctor --` are not CLI11's to interpret.
    std::vector<std::string> program;
    if (!arguments.empty() && (arguments.front() == "run" || arguments.front() == "doctor")) {
        const auto separator = std::ranges::find(arguments, "--");
        if (separator != arguments.end()) {
            program.assign(separator + 1, arguments.end());
            arguments.erase(separator, arguments.end());
        }
    }

    CLI::App app("Compressed key/value caches for llama.cpp programs", "kvcodec");
    app.set_version_flag("--version", "kvcodec " KVCODEC_VERSION);
    app.require_subcommand(1);
    app.footer(
        "Exit codes: 0 success, 1 failure, 2 wrong usage, 126 program not executable, 127 program not "
        "found; `run` otherwise ends as its program does.");
    kvcodec::add_run_command(app, program);
    kvcodec::add_inspect_command(app);
#ifdef KVCODEC_WITH_LLAMA
    kvcodec::add_train_command(app);
    kvcodec::add_lowrank_command(app);
    kvcodec::add_eval_command(app);
    kvcodec::add_bench_command(app);
    kvcodec::add_doctor_command(app, std::move(program));
#endif
    try {
        std::ranges::reverse(arguments);  // as CLI11 wants them
        app.parse(std::move(arguments));
    } catch (const CLI::RuntimeError& error) {
        return error.get_exit_code();
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : kWrongUsage;
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        kvcodec::force_target_of_environment();
        const int code = run({argv + 1, argv + argc});
        if (std::fflush(stdout) != 0) {
            throw std::runtime_error("the output could not be written");
        }
        return code;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "kvcodec: %s\n", error.what());
        return kFailure;
    }
}
