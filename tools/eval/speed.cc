// Suites of time: `speed`, inter-token latency against depth, prompt throughput and several sequences; `components`,
// where the time of a step's attention goes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "tools/eval/evaluation.h"
#include "tools/eval/statistics.h"
#include "tools/progress.h"

namespace kvcodec {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

constexpr size_t kUbatch = 512;
constexpr size_t kTokensPerDepth = 48;

// What is computed does not depend on what the tokens are; plain words of the vocabulary do.
llama_token filler(size_t i, size_t n_vocab) {
    return static_cast<llama_token>(n_vocab / 8 + i * 7919 % (n_vocab / 2));
}

/// Reads tokens up to `end`; returns the milliseconds.
double fill(const EvalContext& context, TokenBatch& batch, size_t begin, size_t end, size_t sequence, size_t n_vocab) {
    const auto start = Clock::now();
    for (size_t at = begin; at < end; at += kUbatch) {
        check_interrupted();
        batch.clear();
        for (size_t i = at; i < std::min(at + kUbatch, end); ++i) {
            batch.add(filler(i, n_vocab), static_cast<llama_pos>(i), sequence, false);
        }
        context.decode(batch);
        llama_synchronize(context.get());
    }
    return milliseconds_since(start);
}

/// Latencies of single steps of n_seq sequences from `position` on.
std::vector<float> steps(const EvalContext& context, TokenBatch& batch, size_t position, size_t n_seq, size_t n_steps,
                         size_t n_vocab) {
    std::vector<float> latencies;
    for (size_t i = 0; i < n_steps; ++i) {
        check_interrupted();
        batch.clear();
        for (size_t s = 0; s < n_seq; ++s) {
            batch.add(filler(position + i, n_vocab), static_cast<llama_pos>(position + i), s, true);
        }
        const auto start = Clock::now();
        context.decode(batch);
        llama_synchronize(context.get());
        latencies.push_back(static_cast<float>(milliseconds_since(start)));
    }
    return latencies;
}

/// Milliseconds that the plug-in has spent on coding rows.
double encoding_ms(const EvalContext& context) {
    const Json report = context.report();
    return report.is_null() ? 0.0 : report["encode_us"].get<double>() / 1e3;
}

Json measure(const Evaluation& evaluation, const EvalHost& host, const CacheSpec& cache, Progress& progress,
             size_t& done, size_t total) {
    const EvalOptions& options = evaluation.options;
    const size_t n_vocab = host.n_vocab();
    const size_t deepest = *std::ranges::max_element(options.depths);
    const ContextShape shape{(deepest + kTokensPerDepth + 255) / 256 * 256, kUbatch, 1};
    const auto context = host.make_context(cache, shape);
    TokenBatch batch(kUbatch);
    steps(*context, batch, 0, 1, kTokensPerDepth, n_vocab);  // threads and clock warm up
    context->clear();
    Json result;
    std::vector<double> depths;
    std::vector<double> medians;
    double prompt_ms = 0;
    double prompt_encoding_ms = 0;
    for (size_t at = 0; const size_t depth : options.depths) {
        const double encoded_before = encoding_ms(*context);
        prompt_ms += fill(*context, batch, at, depth, 0, n_vocab);
        prompt_encoding_ms += encoding_ms(*context) - encoded_before;
        at = depth + kTokensPerDepth;
        const std::vector<float> latencies = steps(*context, batch, depth, 1, kTokensPerDepth, n_vocab);
        depths.push_back(static_cast<double>(depth + kTokensPerDepth / 2));
        medians.push_back(quantile(latencies, 0.5));
        result["depths"].push_back({{"depth", depth},
                                    {"median_ms", medians.back()},
                                    {"p99_ms", quantile(latencies, 0.99)},
                                    {"prompt_ms_so_far", prompt_ms}});
        progress.update(++done, total, fmt::format("{} at depth {}", cache.name, depth));
    }
    result.update(context->accounting());
    if (cache.plugin && prompt_ms > 0) {
        result["prompt_encode_share"] = prompt_encoding_ms / prompt_ms;
    }
    if (depths.size() > 1) {
        const Line line = fit_line(depths, medians);
        result["intercept_ms"] = line.intercept;
        result["slope_us_per_token"] = line.slope * 1e3;
    }
    return result;
}

/// Tokens a second of several sequences, each at a depth of 1024.
Json measure_sequences(const Evaluation& evaluation, const EvalHost& host, const CacheSpec& cache) {
    constexpr size_t kDepth = 1024;
    constexpr size_t kSteps = 16;
    const size_t n_vocab = host.n_vocab();
    Json result = Json::array();
    for (const size_t n_seq : evaluation.options.sequences) {
        const auto context = host.make_context(cache, {kDepth + 256, kUbatch, n_seq});
        TokenBatch batch(kUbatch);
        for (size_t s = 0; s < n_seq; ++s) {
            fill(*context, batch, 0, kDepth, s, n_vocab);
        }
        steps(*context, batch, kDepth, n_seq, 4, n_vocab);
        const double median = quantile(steps(*context, batch, kDepth + 4, n_seq, kSteps, n_vocab), 0.5);
        result.push_back({{"sequences", n_seq}, {"tokens_per_second", static_cast<double>(n_seq) * 1e3 / median}});
    }
    return result;
}

/// Milliseconds of each part of attention in one step at `depth`.
Json measure_components(const Evaluation& evaluation, CacheSpec cache, size_t depth) {
    cache.options += ",measure=time";
    const size_t n_vocab = evaluation.host.n_vocab();
    const auto context = evaluation.host.make_context(cache, {(depth + kTokensPerDepth + 255) / 256 * 256, kUbatch, 1});
    TokenBatch batch(kUbatch);
    fill(*context, batch, 0, depth, 0, n_vocab);
    const Json before = context->report();
    steps(*context, batch, depth, 1, kTokensPerDepth, n_vocab);
    const Json after = context->report();
    Json result = context->accounting();
    result["parts_ms"] = Json::object();
    if (!before.is_null()) {
        for (const auto& [part, value] : after["times_us"].items()) {
            result["parts_ms"][part] = (value.get<double>() - before["times_us"][part].get<double>()) / 1e3 /
                                       static_cast<double>(kTokensPerDepth);
        }
    }
    return result;
}

/// Time is of interest as users see it: with the dense window.
CacheSpec as_users_run(CacheSpec cache) {
    if (cache.plugin) {
        cache.options += ",mode=live";
    }
    return cache;
}

}  // namespace

void run_components(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    const size_t depth = *std::ranges::max_element(options.depths);
    const Json settings = {{"depth", depth}, {"threads", options.n_threads}};
    for (const auto& group : evaluation.pending("components", settings, true)) {
        Progress progress(fmt::format("components of {} caches", group.size()));
        for (size_t i = 0; i < group.size(); ++i) {
            evaluation.results.put("components", group[i].name, settings_of(group[i], settings),
                                   measure_components(evaluation, as_users_run(group[i]), depth));
            progress.update(i + 1, group.size());
        }
        progress.finish(fmt::format("{} caches", group.size()));
    }
}

void run_speed(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    const Json settings = {
        {"depths", options.depths}, {"sequences", options.sequences}, {"threads", options.n_threads}};
    const auto pending = evaluation.pending("speed", settings);
    std::vector<CacheSpec> caches;
    // Latencies of different runs cannot be compared, so f16 is measured beside whatever is measured.
    if (!pending.empty()) {
        caches.push_back(reference_cache());
    }
    for (const auto& group : pending) {
        caches.insert(caches.end(), group.begin(), group.end());
    }
    if (caches.empty()) {
        return;
    }
    Progress progress(fmt::format("speed of {} caches", caches.size()));
    // Caches of the host run without the plug-in, as they do where there is none.
    const EvalHost bare(evaluation.host.info().path, {}, evaluation.host.n_threads());
    size_t done = 0;
    Json f16;  // of this run; kept in each result, because a later run replaces f16's own
    for (const CacheSpec& cache : caches) {
        const CacheSpec live = as_users_run(cache);
        const EvalHost& host = cache.plugin ? evaluation.host : bare;
        Json result = measure(evaluation, host, live, progress, done, caches.size() * options.depths.size());
        const double prompt_ms = result["depths"].back()["prompt_ms_so_far"].get<double>();
        result["sequences"] = measure_sequences(evaluation, host, live);
        if (cache.is_reference()) {
            for (const char* key : {"depths", "sequences", "intercept_ms", "slope_us_per_token"}) {
                if (result.contains(key)) {
                    f16[key] = result[key];
                }
            }
        }
        result["f16"] = f16;
        if (const double f16_ms = f16["depths"].back()["prompt_ms_so_far"].get<double>(); f16_ms > 0) {
            result["prompt_ratio"] = prompt_ms / f16_ms;
        }
        if (const double f16_slope = f16.value("slope_us_per_token", 0.0); f16_slope > 0) {
            const double slope = result.value("slope_us_per_token", 0.0);
            const double gain = (f16_slope - slope) / 1e3;
            result["slope_ratio"] = slope / f16_slope;
            if (gain > 0) {
                result["break_even_depth"] =
                    std::max(0.0, (result.value("intercept_ms", 0.0) - f16.value("intercept_ms", 0.0)) / gain);
            }
        }
        evaluation.results.put("speed", cache.name, settings_of(cache, settings), std::move(result));
    }
    progress.finish(fmt::format("{} caches", caches.size()));
}

}  // namespace kvcodec
