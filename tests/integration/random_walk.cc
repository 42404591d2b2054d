// Everything that a program may do with llama.cpp's cache, at random: the same steps on the host's f16 cache and on
// others, whose predictions must stay equal or near.
//     kvcodec_random_walk PLUGIN MODEL STEPS FIRST_SEED N_SEEDS unified|streams CACHE=BOUND...
// CACHE as `kvcodec eval` takes it; BOUND: of the mean KL divergence from the f16 cache, 0: equal bit for bit. Prints
// how often each step was taken, and what each cache came to. Exit code 1: some prediction was off.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <llama.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kvcodec/error.h"
#include "tools/eval/cache_spec.h"
#include "tools/eval/host.h"
#include "tools/host_model.h"

namespace kvcodec {
namespace {

constexpr size_t kSequences = 4;
constexpr size_t kLongest = 224;  ///< tokens of a sequence, of the room for 256
constexpr size_t kMostTokens = 24;
constexpr double kLeastCoded = 0.3;  ///< of pairs, or the walk says nothing about a codec

struct Arguments {
    std::string plugin, model;
    size_t n_steps = 0;
    uint32_t first_seed = 0;
    size_t n_seeds = 0;
    bool unified = false;
    std::vector<std::pair<CacheSpec, double>> caches;
};

/// KL divergence of softmax(actual) from softmax(expected).
double divergence(std::span<const float> expected, std::span<const float> actual) {
    const auto log_sum = [](std::span<const float> logits) {
        const double top = *std::ranges::max_element(logits);
        double sum = 0.0;
        for (const float logit : logits) {
            sum += std::exp(static_cast<double>(logit) - top);
        }
        return top + std::log(sum);
    };
    const double expected_sum = log_sum(expected), actual_sum = log_sum(actual);
    double kld = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double log_p = static_cast<double>(expected[i]) - expected_sum;
        kld += std::exp(log_p) * (log_p - (static_cast<double>(actual[i]) - actual_sum));
    }
    return kld;
}

/// One cache on its way.
struct Walker {
    std::unique_ptr<EvalContext> context;
    double bound = 0;
    std::vector<uint8_t> saved;           ///< state of the whole context
    std::vector<uint8_t> saved_sequence;  ///< of one sequence
    double sum = 0, worst = 0;
    size_t n_predictions = 0;

    llama_context* get() const { return context->get(); }
    llama_memory_t memory() const { return llama_get_memory(get()); }
};

class Walk {
  public:
    Walk(const EvalHost& host, const Arguments& arguments, uint32_t seed)
        : seed_(seed), rng_(seed), n_vocab_(host.n_vocab()), batch_(kSequences * kMostTokens) {
        const ContextShape shape{256, 256, kSequences, arguments.unified};
        add(host, parse_caches("f16", {}, "").front(), 0.0, shape);
        for (const auto& [spec, bound] : arguments.caches) {
            add(host, spec, bound, shape);
        }
    }

    void run(size_t n_steps) {
        // A step that does not apply at the moment is no step.
        const std::vector<std::pair<const char*, bool (Walk::*)()>> rare = {
            {"remove tail", &Walk::remove_tail},
            {"remove middle", &Walk::remove_middle},
            {"shift", &Walk::shift},
            {"divide", &Walk::divide},
            {"copy", &Walk::copy},
            {"keep", &Walk::keep},
            {"save", &Walk::save},
            {"load", &Walk::load},
            {"save sequence", &Walk::save_sequence},
            {"load sequence", &Walk::load_sequence},
            {"clear", &Walk::clear},
        };
        const std::vector<double> weights = {6, 3, 5, 1, 3, 0.5, 2, 2, 2, 2, 0.3};
        std::discrete_distribution<size_t> which(weights.begin(), weights.end());
        for (step_ = 0; step_ < n_steps;) {
            const bool decodes = below(10) < 6;
            const auto& [name, act] =
                decodes ? std::pair<const char*, bool (Walk::*)()>("decode", &Walk::decode) : rare[which(rng_)];
            if ((this->*act)()) {
                ++counts_[name];
                ++step_;
            }
        }
    }

    const std::map<std::string, size_t>& counts() const { return counts_; }
    const std::vector<Walker>& walkers() const { return walkers_; }

  private:
    void add(const EvalHost& host, const CacheSpec& spec, double bound, const ContextShape& shape) {
        Walker walker;
        walker.context = host.make_context(spec, shape);
        walker.bound = bound;
        walkers_.push_back(std::move(walker));
    }

    size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(rng_); }
    llama_seq_id any_sequence() { return static_cast<llama_seq_id>(below(kSequences)); }
    llama_pos last(llama_seq_id sequence) const {
        return llama_memory_seq_pos_max(walkers_.front().memory(), sequence);
    }
    llama_pos first(llama_seq_id sequence) const {
        return llama_memory_seq_pos_min(walkers_.front().memory(), sequence);
    }
    /// Some position of a sequence after its first one, or -1 if there is none.
    llama_pos any_position(llama_seq_id sequence) {
        const llama_pos from = first(sequence), to = last(sequence);
        return to <= from ? -1 : from + 1 + static_cast<llama_pos>(below(static_cast<size_t>(to - from)));
    }

    [[noreturn]] void fail(const Walker& walker, const std::string& what) const {
        throw Error(fmt::format("seed {}, step {}, cache {}: {}", seed_, step_, walker.context->spec().name, what));
    }

    /// Does `act` with every cache; what it returns must be the same.
    template <typename Act>
    auto all(const Act& act) {
        auto expected = act(walkers_.front());
        for (size_t i = 1; i < walkers_.size(); ++i) {
            if (act(walkers_[i]) != expected) {
                fail(walkers_[i], "llama.cpp returned something else than with the f16 cache");
            }
        }
        return expected;
    }

    bool decode() {
        batch_.clear();
        const size_t first_sequence = below(kSequences), n = 1 + below(3);
        for (size_t i = 0; i < n; ++i) {
            const auto sequence = static_cast<llama_seq_id>((first_sequence + i) % kSequences);
            const size_t n_tokens = below(3) == 0 ? 1 + below(kMostTokens) : 1;
            if (static_cast<size_t>(last(sequence) + 1) + n_tokens > kLongest) {
                continue;
            }
            for (size_t t = 0; t < n_tokens; ++t) {
                batch_.add(static_cast<llama_token>(below(n_vocab_)), last(sequence) + 1 + static_cast<llama_pos>(t),
                           static_cast<size_t>(sequence), true);
            }
        }
        if (batch_.size() == 0) {
            return false;
        }
        if (all([&](Walker& walker) { return llama_decode(walker.get(), batch_.get()); }) != 0) {
            return false;  // no room left
        }
        for (Walker& walker : walkers_) {
            compare(walker);
        }
        return true;
    }

    void compare(Walker& walker) {
        for (size_t i = 0; i < batch_.size(); ++i) {
            const auto logits = [&](const Walker& of) {
                return std::span(llama_get_logits_ith(of.get(), static_cast<int32_t>(i)), n_vocab_);
            };
            const std::span<const float> expected = logits(walkers_.front()), actual = logits(walker);
            if (walker.bound == 0.0) {
                if (std::memcmp(expected.data(), actual.data(), expected.size_bytes()) != 0) {
                    fail(walker, fmt::format("the logits of token {} of {} differ", i, batch_.size()));
                }
                continue;
            }
            const double kld = divergence(expected, actual);
            if (!std::isfinite(kld)) {
                fail(walker, "logits are not finite");
            }
            walker.sum += kld;
            walker.worst = std::max(walker.worst, kld);
            ++walker.n_predictions;
        }
    }

    bool remove_tail() {
        const llama_seq_id sequence = any_sequence();
        const llama_pos from = any_position(sequence);
        if (from < 0) {
            return false;
        }
        all([&](Walker& walker) { return llama_memory_seq_rm(walker.memory(), sequence, from, -1); });
        return true;
    }

    bool remove_middle() {
        const llama_seq_id sequence = any_sequence();
        const llama_pos from = any_position(sequence);
        if (from < 0 || last(sequence) - from < 2) {
            return false;
        }
        const auto n = static_cast<llama_pos>(1 + below(static_cast<size_t>(last(sequence) - from - 1)));
        all([&](Walker& walker) { return llama_memory_seq_rm(walker.memory(), sequence, from, from + n); });
        return true;
    }

    /// Whether the positions of a sequence may change: cells of two sequences would move in both, which no program
    /// does.
    bool can_move(llama_seq_id sequence) const {
        return !shares_[static_cast<size_t>(sequence)] && llama_memory_can_shift(walkers_.front().memory());
    }

    /// As llama-server does when a slot is full: the tokens after the first ones go, the rest moves up.
    bool shift() {
        const llama_seq_id sequence = any_sequence();
        const llama_pos from = any_position(sequence);
        if (from < 0 || last(sequence) - from < 4 || !can_move(sequence)) {
            return false;
        }
        const llama_pos n = (last(sequence) - from) / 2;
        all([&](Walker& walker) {
            const bool removed = llama_memory_seq_rm(walker.memory(), sequence, from, from + n);
            llama_memory_seq_add(walker.memory(), sequence, from + n, -1, -n);
            return removed;
        });
        return true;
    }

    /// As self-extend does: positions are divided.
    bool divide() {
        const llama_seq_id sequence = any_sequence();
        const llama_pos from = any_position(sequence);
        if (from < 0 || !can_move(sequence)) {
            return false;
        }
        all([&](Walker& walker) {
            llama_memory_seq_div(walker.memory(), sequence, from, -1, 2);
            return true;
        });
        return true;
    }

    bool copy() {
        const llama_seq_id from = any_sequence(), to = any_sequence();
        if (from == to || last(from) < 0) {
            return false;
        }
        all([&](Walker& walker) {
            const bool removed = llama_memory_seq_rm(walker.memory(), to, -1, -1);
            llama_memory_seq_cp(walker.memory(), from, to, -1, -1);
            return removed;
        });
        shares_[static_cast<size_t>(from)] = shares_[static_cast<size_t>(to)] = true;
        return true;
    }

    bool keep() {
        const llama_seq_id sequence = any_sequence();
        if (last(sequence) < 0) {
            return false;
        }
        all([&](Walker& walker) {
            llama_memory_seq_keep(walker.memory(), sequence);
            return true;
        });
        shares_ = {};
        return true;
    }

    bool save() {
        all([&](Walker& walker) {
            walker.saved.resize(llama_state_get_size(walker.get()));
            walker.saved.resize(llama_state_get_data(walker.get(), walker.saved.data(), walker.saved.size()));
            return walker.saved.empty();
        });
        saved_shares_ = shares_;
        return true;
    }

    bool load() {
        if (walkers_.front().saved.empty()) {
            return false;
        }
        all([&](Walker& walker) {
            return llama_state_set_data(walker.get(), walker.saved.data(), walker.saved.size()) == walker.saved.size();
        });
        shares_ = saved_shares_;
        return true;
    }

    bool save_sequence() {
        const llama_seq_id sequence = any_sequence();
        if (last(sequence) < 0) {
            return false;
        }
        all([&](Walker& walker) {
            walker.saved_sequence.resize(llama_state_seq_get_size(walker.get(), sequence));
            walker.saved_sequence.resize(llama_state_seq_get_data(walker.get(), walker.saved_sequence.data(),
                                                                  walker.saved_sequence.size(), sequence));
            return walker.saved_sequence.empty();
        });
        return true;
    }

    bool load_sequence() {
        const llama_seq_id sequence = any_sequence();
        if (walkers_.front().saved_sequence.empty()) {
            return false;
        }
        const bool loaded = all([&](Walker& walker) {
            return llama_state_seq_set_data(walker.get(), walker.saved_sequence.data(), walker.saved_sequence.size(),
                                            sequence) > 0;
        });
        shares_[static_cast<size_t>(sequence)] = false;
        return loaded;
    }

    bool clear() {
        all([&](Walker& walker) {
            llama_memory_clear(walker.memory(), true);
            return true;
        });
        shares_ = {};
        return true;
    }

    uint32_t seed_;
    std::mt19937 rng_;
    size_t n_vocab_;
    TokenBatch batch_;
    std::vector<Walker> walkers_;  // the host's f16 cache first
    std::array<bool, kSequences> shares_{}, saved_shares_{};
    std::map<std::string, size_t> counts_;
    size_t step_ = 0;
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
    if (words.size() < 8) {
        throw Error("usage: kvcodec_random_walk PLUGIN MODEL STEPS FIRST_SEED N_SEEDS unified|streams CACHE=BOUND...");
    }
    Arguments arguments{words[1],
                        words[2],
                        parse_number<size_t>(words[3]),
                        parse_number<uint32_t>(words[4]),
                        parse_number<size_t>(words[5]),
                        std::string(words[6]) == "unified",
                        {}};
    for (const std::string word : words.subspan(7)) {
        const size_t at = word.rfind('=');
        arguments.caches.emplace_back(parse_caches(word.substr(0, at), {}, "live").front(),
                                      parse_number<double>(word.substr(at + 1)));
    }
    return arguments;
}

/// What the plug-in warns of is part of the report.
void print_warnings(ggml_log_level level, const char* text, void*) {
    if (level >= GGML_LOG_LEVEL_WARN && std::strstr(text, "kvcodec") != nullptr) {
        fmt::print(stderr, "{}", text);
    }
}

bool walk(const Arguments& arguments) {
    const EvalHost host(arguments.model, arguments.plugin, 1);
    llama_log_set(print_warnings, nullptr);
    bool passed = true;
    for (size_t i = 0; i < arguments.n_seeds; ++i) {
        const auto seed = static_cast<uint32_t>(arguments.first_seed + i);
        Walk walk(host, arguments, seed);
        walk.run(arguments.n_steps);
        fmt::print("seed {}: {}\n", seed, walk.counts());
        for (const Walker& walker : std::span(walk.walkers()).subspan(1)) {
            const double mean =
                walker.n_predictions == 0 ? 0.0 : walker.sum / static_cast<double>(walker.n_predictions);
            const double coded = walker.context->accounting()["pairs_through_codes"].get<double>();
            const bool is_near = mean <= walker.bound;
            if (walker.bound > 0.0 && coded < kLeastCoded) {
                throw Error(fmt::format("{} read only {:.0f} % of pairs through codes", walker.context->spec().name,
                                        100 * coded));
            }
            passed = passed && is_near;
            fmt::print("    {}: {}, mean KLD {:.6f}, largest {:.4f}, {:.0f} % of pairs read through codes\n",
                       walker.context->spec().name,
                       walker.bound == 0.0 ? "equal"
                       : is_near           ? "near"
                                           : fmt::format("MORE THAN {}", walker.bound),
                       mean, walker.worst, 100.0 * walker.context->accounting()["pairs_through_codes"].get<double>());
        }
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
