// The subcommands of `kvcodec`, one function and one file each.
//
// A function adds its subcommand to the app; the subcommand's callback does the work and reports how it ended:
//     returns                      exit code 0
//     throws kvcodec::Error        the message is printed, exit code 1
//     throws CLI::ValidationError  the message is printed, exit code 2 (wrong usage)
//     throws CLI::RuntimeError     the code that it carries; the callback has printed why
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace kvcodec {

void add_inspect_command(CLI::App& app);
/// program: the program and its arguments, what follows `--` on the command line.
void add_run_command(CLI::App& app, std::vector<std::string> program);
#ifdef KVCODEC_WITH_LLAMA
void add_train_command(CLI::App& app);
void add_lowrank_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_bench_command(CLI::App& app);
/// program: as above, may be empty.
void add_doctor_command(CLI::App& app, std::vector<std::string> program);
#endif

}  // namespace kvcodec
