// What becomes of the caches of many architectures, as a Markdown table.
//     kvcodec_model_zoo PLUGIN STEPS [NAME...]
// Each model walks at random (random_walk.h) with a cache that passes through, which must equal the f16 cache, and with
// 8 bits. Exit code 1: some model failed.
#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcodec/error.h"
#include "tests/integration/model_zoo.h"
#include "tests/integration/random_walk.h"

namespace kvcodec {
namespace {

// Divergence of 8 bits that is too much: this, or so many times the host's, whose codes have half the error.
constexpr double kMostDivergence = 1e-3;
constexpr double kMostOfHost = 6;
/// Of pairs, in a model that is compressed.
constexpr double kLeastCoded = 0.4;

/// Why layers are not compressed, of the plug-in's warnings from `first` on; each reason once.
std::vector<std::string> reasons_since(size_t first) {
    constexpr std::string_view kMark = "is not compressed: ";
    std::vector<std::string> reasons;
    for (const std::string& warning : std::span(plugin_warnings()).subspan(first)) {
        const size_t at = warning.find(kMark);
        const std::string reason = at == std::string::npos ? warning : warning.substr(at + kMark.size());
        if (std::ranges::find(reasons, reason) == reasons.end()) {
            reasons.push_back(reason);
        }
    }
    return reasons;
}

struct Row {
    std::string compressed = "0";
    std::string others;                     ///< what of the other layers
    std::string equal, host, coded, share;  ///< of the walk
    bool passed = true;
};

Row try_model(const ZooModel& zoo_model, ggml_backend_dev_t device, size_t n_steps) {
    Row row;
    const size_t n_warnings = plugin_warnings().size();
    try {
        const LlamaModel model = make_zoo_model(zoo_model, device);
        std::vector<WalkCache> caches = {
            {parse_caches("kvcodec:codec=none", {}, "live").front(), 0.0},
            {parse_caches("kvcodec:codec=scalar:bits=8:window=16", {}, "live").front(), kMostDivergence}};
        // llama.cpp itself ends when quantised keys of other heads are shifted.
        const bool has_host_codes = std::has_single_bit(zoo_model.dim) && zoo_model.rotated == 0;
        if (has_host_codes) {
            caches.push_back({parse_caches("q8_0", {}, "").front(), INFINITY});
        }
        RandomWalk walk(model.get(), ggml_backend_dev_backend_reg(device), caches, false,
                        all_tokens(llama_model_get_vocab(model.get())), 1);
        walk.run(n_steps);
        const RandomWalk::Walker& coded = walk.walkers()[2];
        const Json report = coded.context->report();
        if (!report.is_null()) {
            const auto n_passed = std::ranges::count(report["codecs"], Json("f16"));
            row.compressed = std::to_string(report["codecs"].size() - static_cast<size_t>(n_passed));
        }
        const double host = has_host_codes ? walk.walkers()[3].mean() : 0.0;
        const double share = coded.share_read_through_codes();
        row.passed = coded.n_predictions > 0 && coded.mean() <= std::max(kMostDivergence, kMostOfHost * host) &&
                     (row.compressed == "0" || share > kLeastCoded);
        row.equal = "equal";
        row.host = has_host_codes ? fmt::format("{:.1e}", host) : "";
        row.coded = fmt::format("{:.1e}", coded.mean());
        row.share = fmt::format("{:.0f} %", 100 * share);
    } catch (const std::exception& error) {
        row.equal = error.what();
        row.passed = false;
    }
    row.others = fmt::format("{}", fmt::join(reasons_since(n_warnings), "; "));
    return row;
}

bool visit(std::span<char*> words) {
    if (words.size() < 3) {
        throw Error("usage: kvcodec_model_zoo PLUGIN STEPS [NAME...]");
    }
    ggml_backend_dev_t device = load_plugin(words[1]);
    const size_t n_steps = std::stoul(words[2]);
    const std::vector<std::string> names(words.begin() + 3, words.end());
    fmt::print(
        "| models | architecture | special | layers | compressed | why not the others | codec=none | KLD of q8_0 | KLD "
        "of 8 bits | pairs read through codes |\n|{}\n",
        fmt::join(std::vector<std::string_view>(10, " --- |"), ""));
    for (const std::string& name : names) {
        if (std::ranges::find(model_zoo(), name, &ZooModel::name) == model_zoo().end()) {
            throw Error(fmt::format("there is no model {}", name));
        }
    }
    bool passed = true;
    for (const ZooModel& model : model_zoo()) {
        if (!names.empty() && std::ranges::find(names, model.name) == names.end()) {
            continue;
        }
        const Row row = try_model(model, device, n_steps);
        passed = passed && row.passed;
        fmt::print("| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", model.name, model.architecture,
                   model.special, model.n_layer, row.compressed, row.others, row.equal, row.host, row.coded, row.share);
        std::fflush(stdout);
    }
    return passed;
}

}  // namespace
}  // namespace kvcodec

int main(int n_words, char** words) {
    try {
        return kvcodec::visit({words, static_cast<size_t>(n_words)}) ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& error) {
        fmt::print(stderr, "kvcodec_model_zoo: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
