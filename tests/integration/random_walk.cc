#include "tests/integration/random_walk.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "kvcodec/error.h"
#include "tools/eval/statistics.h"

namespace kvcodec {

namespace {

constexpr size_t kLongest = 224;  ///< tokens of a sequence, of the room for 256
constexpr size_t kMostTokens = 24;

}  // namespace

std::vector<llama_token> all_tokens(const llama_vocab* vocab) {
    std::vector<llama_token> tokens(static_cast<size_t>(llama_vocab_n_tokens(vocab)));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
}

RandomWalk::RandomWalk(llama_model* model, ggml_backend_reg_t plugin, const std::vector<WalkCache>& caches,
                       bool unified, std::vector<llama_token> tokens, uint32_t seed)
    : seed_(seed),
      rng_(seed),
      n_vocab_(static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)))),
      tokens_(std::move(tokens)),
      unified_(unified),
      batch_(kSequences * kMostTokens) {
    std::vector<WalkCache> all = {{parse_caches("f16", {}, "").front(), 0.0}};
    all.insert(all.end(), caches.begin(), caches.end());
    for (const WalkCache& cache : all) {
        Walker walker;
        walker.context =
            std::make_unique<EvalContext>(model, cache.spec, ContextShape{256, 256, kSequences, unified}, 1, 0, plugin);
        walker.bound = cache.bound;
        walkers_.push_back(std::move(walker));
    }
}

void RandomWalk::fail(const Walker& walker, const std::string& what) const {
    throw Error(fmt::format("seed {}, step {}, cache {}: {}", seed_, step_, walker.context->spec().name, what));
}

void RandomWalk::run(size_t n_steps) {
    // A step that does not apply at the moment is no step.
    const std::vector<std::pair<const char*, bool (RandomWalk::*)()>> rare = {
        {"remove tail", &RandomWalk::remove_tail},
        {"remove middle", &RandomWalk::remove_middle},
        {"shift", &RandomWalk::shift},
        {"divide", &RandomWalk::divide},
        {"copy", &RandomWalk::copy},
        {"keep", &RandomWalk::keep},
        {"save", &RandomWalk::save},
        {"load", &RandomWalk::load},
        {"save sequence", &RandomWalk::save_sequence},
        {"load sequence", &RandomWalk::load_sequence},
        {"clear", &RandomWalk::clear},
    };
    const std::vector<double> weights = {6, 3, 5, 1, 3, 0.5, 2, 2, 2, 2, 0.3};
    std::discrete_distribution<size_t> which(weights.begin(), weights.end());
    for (step_ = 0; step_ < n_steps;) {
        const bool decodes = below(10) < 6;
        const auto& [name, act] =
            decodes ? std::pair<const char*, bool (RandomWalk::*)()>("decode", &RandomWalk::decode) : rare[which(rng_)];
        if ((this->*act)()) {
            ++counts_[name];
            ++step_;
        }
    }
}

llama_pos RandomWalk::any_position(llama_seq_id sequence) {
    const llama_pos from = first(sequence), to = last(sequence);
    return to <= from ? -1 : from + 1 + static_cast<llama_pos>(below(static_cast<size_t>(to - from)));
}

bool RandomWalk::decode() {
    batch_.clear();
    const size_t first_sequence = below(kSequences), n = 1 + below(3);
    for (size_t i = 0; i < n; ++i) {
        const auto sequence = static_cast<llama_seq_id>((first_sequence + i) % kSequences);
        const size_t n_tokens = below(3) == 0 ? 1 + below(kMostTokens) : 1;
        if (static_cast<size_t>(last(sequence) + 1) + n_tokens > kLongest) {
            continue;
        }
        for (size_t t = 0; t < n_tokens; ++t) {
            batch_.add(tokens_[below(tokens_.size())], last(sequence) + 1 + static_cast<llama_pos>(t),
                       static_cast<size_t>(sequence), true);
        }
    }
    if (batch_.size() == 0) {
        return false;
    }
    constexpr int32_t kNoRoom = 1;
    const int32_t status = all([&](Walker& walker) { return llama_decode(walker.get(), batch_.get()); });
    if (status == kNoRoom) {
        return false;
    }
    if (status != 0) {
        fail(walkers_.front(), fmt::format("llama.cpp cannot decode (status {})", status));
    }
    for (Walker& walker : walkers_) {
        compare(walker);
    }
    return true;
}

void RandomWalk::compare(Walker& walker) {
    for (size_t i = 0; i < batch_.size(); ++i) {
        const auto logits = [&](const Walker& of) {
            return std::span(llama_get_logits_ith(of.get(), static_cast<int32_t>(i)), n_vocab_);
        };
        const std::span<const float> expected = logits(walkers_.front()), actual = logits(walker);
        if (!std::ranges::all_of(actual, [](float logit) { return std::isfinite(logit); })) {
            fail(walker, "logits are not finite");
        }
        ++walker.n_predictions;
        if (walker.bound == 0.0) {
            if (std::memcmp(expected.data(), actual.data(), expected.size_bytes()) != 0) {
                fail(walker, fmt::format("the logits of token {} of {} differ", i, batch_.size()));
            }
            continue;
        }
        const double kld = double{divergence(expected.data(), actual.data(), n_vocab_, 0).kld};
        walker.sum += kld;
        walker.worst = std::max(walker.worst, kld);
    }
}

bool RandomWalk::remove_tail() {
    const llama_seq_id sequence = any_sequence();
    const llama_pos from = any_position(sequence);
    if (from < 0) {
        return false;
    }
    all([&](Walker& walker) { return llama_memory_seq_rm(walker.memory(), sequence, from, -1); });
    return true;
}

bool RandomWalk::remove_middle() {
    const llama_seq_id sequence = any_sequence();
    const llama_pos from = any_position(sequence);
    if (from < 0 || last(sequence) - from < 2) {
        return false;
    }
    const auto n = static_cast<llama_pos>(1 + below(static_cast<size_t>(last(sequence) - from - 1)));
    all([&](Walker& walker) { return llama_memory_seq_rm(walker.memory(), sequence, from, from + n); });
    return true;
}

bool RandomWalk::shift() {
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

bool RandomWalk::divide() {
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

bool RandomWalk::copy() {
    const llama_seq_id from = any_sequence(), to = any_sequence();
    if (from == to || last(from) < 0) {
        return false;
    }
    all([&](Walker& walker) {
        const bool removed = llama_memory_seq_rm(walker.memory(), to, -1, -1);
        llama_memory_seq_cp(walker.memory(), from, to, -1, -1);
        return removed;
    });
    // Streams copy.
    shares_[static_cast<size_t>(from)] = shares_[static_cast<size_t>(from)] || unified_;
    shares_[static_cast<size_t>(to)] = unified_;
    return true;
}

bool RandomWalk::keep() {
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

bool RandomWalk::save() {
    all([&](Walker& walker) {
        walker.saved.resize(llama_state_get_size(walker.get()));
        walker.saved.resize(llama_state_get_data(walker.get(), walker.saved.data(), walker.saved.size()));
        return walker.saved.empty();
    });
    saved_shares_ = shares_;
    return true;
}

bool RandomWalk::load() {
    if (walkers_.front().saved.empty()) {
        return false;
    }
    all([&](Walker& walker) {
        return llama_state_set_data(walker.get(), walker.saved.data(), walker.saved.size()) == walker.saved.size();
    });
    shares_ = saved_shares_;
    return true;
}

bool RandomWalk::save_sequence() {
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

bool RandomWalk::load_sequence() {
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

bool RandomWalk::clear() {
    all([&](Walker& walker) {
        llama_memory_clear(walker.memory(), true);
        return true;
    });
    shares_ = {};
    return true;
}

}  // namespace kvcodec
