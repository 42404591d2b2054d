// What it takes to start a llama.cpp program with a compressed cache: for `kvcodec run`, which does, and `kvcodec
// doctor`, which says what would happen.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "kvcodec/options.h"
#include "tools/host_program.h"

namespace kvcodec {

/// What the user has chosen on the command line.
struct LaunchOptions {
    std::string artifact;
    std::string budget;
    std::string codec;
    std::string window;
    std::string sinks;
    std::string mode;
    std::string plugin;
    std::string device = "KVCODEC";
};
/// `options` must live as long as the command.
void add_launch_options(CLI::App& command, LaunchOptions& options);

/// KVCODEC as the user set it, with the command line's choices on top. Throws CLI::ValidationError.
Options merge_options(const LaunchOptions& launch);

/// Fills in artifact and codec for a model; nothing: its file is not known. Returns what the user should know about the
/// choice. Throws Error where the choice needs an artifact that there is not.
std::string choose_codec(Options& options, const std::optional<std::string>& model_path);

/// A word as a shell must be given it.
std::string shell_quoted(const std::string& word);

/// Sets what the program needs in the environment, apart from what the user has set already. Returns the settings as
/// text.
std::string prepare_environment(HostProgram& program, const LaunchOptions& launch, const Options& options);

}  // namespace kvcodec
