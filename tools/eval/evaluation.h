// What every suite of `kvcodec eval` works with.
#pragma once

#include <string>
#include <vector>

#include "tools/eval/cache_spec.h"
#include "tools/eval/host.h"
#include "tools/eval/results.h"

namespace kvcodec {

struct EvalOptions {
    std::string model;
    std::vector<std::string> artifacts;
    std::string caches;
    std::vector<std::string> suites;
    std::string mode = "strict";
    std::vector<size_t> n_ctx;
    size_t n_chunks = 8;
    size_t together = 4;             ///< caches that run side by side, each with a context of its own
    std::vector<std::string> texts;  ///< files
    std::string problems;
    std::string examples;
    std::string tasks;
    size_t n_problems = 200;
    size_t n_parallel = 8;
    size_t n_shots = 5;
    size_t max_tokens = 256;
    std::vector<std::string> prompts;
    std::vector<size_t> depths;
    std::vector<size_t> sequences;  ///< counts of sequences decoded side by side; may be empty
    size_t n_threads = 1;
    uint64_t seed = 0;
    std::string json;
    std::string html;
    std::string svg;
    std::string plugin;
};

/// One run of the command. The reference, f16 on the host's CPU, is never among `caches`.
struct Evaluation {
    const EvalOptions& options;
    const EvalHost& host;
    std::vector<CacheSpec> caches;
    ResultStore& results;

    /// Caches without a result of this suite and settings, in groups of at most options.together. `settings` is told
    /// apart by what the cache itself depends on; see settings_of().
    std::vector<std::vector<CacheSpec>> pending(const std::string& suite, const Json& settings,
                                                bool plugin_only = false) const;
};

/// `settings` of a suite and what a kvcodec cache adds: its options and the checksum of its artifact.
Json settings_of(const CacheSpec& spec, Json settings);
/// Checksum of a file's bytes, 16 hexadecimal digits. Throws Error if it cannot be read.
std::string file_checksum(const std::string& path);
/// The f16 reference.
CacheSpec reference_cache();
/// Throws Error after Ctrl-C; suites call it between steps.
void check_interrupted();
/// Results of pairs read through codes below this share say nothing about a codec and are marked as refused.
inline constexpr double kLeastPairsThroughCodes = 0.7;

void run_kld(Evaluation& evaluation);
void run_solutions(Evaluation& evaluation);
void run_recon(Evaluation& evaluation);
void run_gsm8k(Evaluation& evaluation);
void run_retrieval(Evaluation& evaluation);
void run_needle(Evaluation& evaluation);
void run_ruler(Evaluation& evaluation);
void run_longbench(Evaluation& evaluation);
void run_choice(Evaluation& evaluation);
void run_generate(Evaluation& evaluation);
void run_speed(Evaluation& evaluation);
void run_components(Evaluation& evaluation);

}  // namespace kvcodec
