// Walks at random over a model of a file.
//     kvcodec_random_walk PLUGIN MODEL TEXT STEPS FIRST_SEED N_SEEDS unified|streams CACHE=BOUND...
// TEXT has the tokens; CACHE as `kvcodec eval` takes it; BOUND as in WalkCache. Prints how often each step was taken,
// and what each cache came to. Exit code 1: some prediction was off.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <llama.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/error.h"
#include "tests/integration/random_walk.h"
#include "tools/eval/cache_spec.h"
#include "tools/host_model.h"
#include "tools/text_file.h"

namespace kvcodec {
namespace {

constexpr double kLeastCoded = 0.3;  ///< of pairs, or the walk says nothing about a codec

struct Arguments {
    std::string plugin, model, text;
    size_t n_steps = 0;
    uint32_t first_seed = 0;
    size_t n_seeds = 0;
    bool unified = false;
    std::vector<WalkCache> caches;
};

template <typename T>
T parse_number(const std::string& text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
        throw Error(fmt::format("{} is not a number", text));
    }
    return value;
}

Arguments parse(std::span<char*> words) {
    if (words.size() < 9) {
        throw Error(
            "usage: kvcodec_random_walk PLUGIN MODEL TEXT STEPS FIRST_SEED N_SEEDS unified|streams CACHE=BOUND...");
    }
    Arguments arguments;
    arguments.plugin = words[1];
    arguments.model = words[2];
    arguments.text = words[3];
    arguments.n_steps = parse_number<size_t>(words[4]);
    arguments.first_seed = parse_number<uint32_t>(words[5]);
    arguments.n_seeds = parse_number<size_t>(words[6]);
    arguments.unified = std::string(words[7]) == "unified";
    for (const std::string word : words.subspan(8)) {
        const size_t at = word.rfind('=');
        arguments.caches.push_back(
            {parse_caches(word.substr(0, at), {}, "live").front(), parse_number<double>(word.substr(at + 1))});
    }
    return arguments;
}

bool walk(const Arguments& arguments) {
    ggml_backend_dev_t device = load_plugin(arguments.plugin);
    const LlamaModel model = load_llama_model(arguments.model, device);
    const std::vector<llama_token> tokens =
        tokenize(llama_model_get_vocab(model.get()), read_text(arguments.text), false, false);
    bool passed = true;
    for (size_t i = 0; i < arguments.n_seeds; ++i) {
        const auto seed = static_cast<uint32_t>(arguments.first_seed + i);
        RandomWalk walk(model.get(), ggml_backend_dev_backend_reg(device), arguments.caches, arguments.unified, tokens,
                        seed);
        walk.run(arguments.n_steps);
        fmt::print("seed {}: {}\n", seed, walk.counts());
        for (const RandomWalk::Walker& walker : std::span(walk.walkers()).subspan(1)) {
            const std::string& name = walker.context->spec().name;
            const double coded = walker.share_read_through_codes();
            if (walker.n_predictions == 0) {
                throw Error("no step decoded anything");
            }
            if (walker.bound > 0.0 && coded < kLeastCoded) {
                throw Error(fmt::format("{} read only {:.0f} % of pairs through codes", name, 100 * coded));
            }
            passed = passed && walker.is_near();
            fmt::print("    {}: {}, mean KLD {:.6f}, largest {:.4f}, {:.0f} % of pairs read through codes\n", name,
                       walker.bound == 0.0 ? "equal"
                       : walker.is_near()  ? "near"
                                           : fmt::format("MORE THAN {}", walker.bound),
                       walker.mean(), walker.worst, 100 * coded);
        }
    }
    for (const std::string& warning : plugin_warnings()) {
        fmt::print(stderr, "kvcodec: {}\n", warning);
    }
    return passed;
}

}  // namespace
}  // namespace kvcodec

int main(int n_words, char** words) {
    try {
        return kvcodec::walk(kvcodec::parse({words, static_cast<size_t>(n_words)})) ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& error) {
        fmt::print(stderr, "kvcodec_random_walk: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
