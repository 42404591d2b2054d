// Everything that a program may do with llama.cpp's cache, at random: the same steps on the host's f16 cache and on
// others, whose predictions must stay equal or near.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tools/eval/cache_spec.h"
#include "tools/eval/host.h"

namespace kvcodec {

/// All tokens of a vocabulary.
std::vector<llama_token> all_tokens(const llama_vocab* vocab);

/// A cache to compare with f16.
struct WalkCache {
    CacheSpec spec;
    double bound = 0;  ///< of the mean KL divergence from the f16 cache; 0: equal bit for bit
};

class RandomWalk {
  public:
    /// plugin: of the kvcodec caches. unified: sequences share one pool of cells. tokens: what sequences are made of,
    /// in any order.
    RandomWalk(llama_model* model, ggml_backend_reg_t plugin, const std::vector<WalkCache>& caches, bool unified,
               std::vector<llama_token> tokens, uint32_t seed);

    /// Throws Error at the first prediction of a cache without bound that is not equal, at one that is not finite, and
    /// where llama.cpp fails or answers otherwise than with the f16 cache.
    void run(size_t n_steps);

    /// How often each step was taken.
    const std::map<std::string, size_t>& counts() const { return counts_; }

    /// One cache on its way.
    struct Walker {
        std::unique_ptr<EvalContext> context;
        double bound = 0;
        double sum = 0, worst = 0;  ///< of the KL divergence
        size_t n_predictions = 0;
        std::vector<uint8_t> saved;           ///< state of the whole context
        std::vector<uint8_t> saved_sequence;  ///< of one sequence

        llama_context* get() const { return context->get(); }
        llama_memory_t memory() const { return llama_get_memory(get()); }
        double mean() const { return n_predictions == 0 ? 0.0 : sum / static_cast<double>(n_predictions); }
        bool is_near() const { return mean() <= bound; }
        double share_read_through_codes() const { return context->accounting()["pairs_through_codes"].get<double>(); }
    };
    /// The host's f16 cache first, then those to compare.
    const std::vector<Walker>& walkers() const { return walkers_; }

  private:
    static constexpr size_t kSequences = 4;

    size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(rng_); }
    llama_seq_id any_sequence() { return static_cast<llama_seq_id>(below(kSequences)); }
    llama_pos last(llama_seq_id sequence) const {
        return llama_memory_seq_pos_max(walkers_.front().memory(), sequence);
    }
    llama_pos first(llama_seq_id sequence) const {
        return llama_memory_seq_pos_min(walkers_.front().memory(), sequence);
    }
    /// Some position of a sequence after its first one, or -1 if there is none.
    llama_pos any_position(llama_seq_id sequence);
    [[noreturn]] void fail(const Walker& walker, const std::string& what) const;
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
    bool decode();
    void compare(Walker& walker);
    bool remove_tail();
    bool remove_middle();
    /// Whether the positions of a sequence may change: cells of two sequences would move in both, which no program
    /// does.
    bool can_move(llama_seq_id sequence) const {
        return !shares_[static_cast<size_t>(sequence)] && llama_memory_can_shift(walkers_.front().memory());
    }
    /// As llama-server does when a slot is full: the tokens after the first ones go, the rest moves up.
    bool shift();
    /// Positions are divided, as self-extend does.
    bool divide();
    bool copy();
    bool keep();
    bool save();
    bool load();
    bool save_sequence();
    bool load_sequence();
    bool clear();

    uint32_t seed_;
    std::mt19937 rng_;
    size_t n_vocab_;
    std::vector<llama_token> tokens_;
    bool unified_;
    TokenBatch batch_;
    std::vector<Walker> walkers_;  // the host's f16 cache first
    std::array<bool, kSequences> shares_{}, saved_shares_{};
    std::map<std::string, size_t> counts_;
    size_t step_ = 0;
};

}  // namespace kvcodec
