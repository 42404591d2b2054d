#include "tools/eval/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "kvcodec/error.h"
#include "tools/eval/answers.h"
#include "tools/progress.h"

namespace kvcodec {

namespace {

constexpr size_t kUbatch = 512;

size_t common_prefix(const std::vector<GenerationRequest>& requests) {
    // One token of each prompt is left, because its prediction is needed.
    size_t n = requests.front().prompt.size() - 1;
    for (const GenerationRequest& request : requests) {
        const auto [a, b] = std::ranges::mismatch(requests.front().prompt, request.prompt);
        n = std::min({n, static_cast<size_t>(a - requests.front().prompt.begin()), request.prompt.size() - 1});
    }
    return n;
}

llama_token likeliest(const float* logits, size_t n_vocab) {
    return static_cast<llama_token>(std::max_element(logits, logits + n_vocab) - logits);
}

// Sequences 0 .. n_parallel - 1 write answers; sequence n_parallel keeps the common beginning.
class Generator {
  public:
    Generator(const Evaluation& evaluation, const CacheSpec& cache, const std::vector<GenerationRequest>& requests)
        : host_(evaluation.host),
          requests_(requests),
          n_slots_(std::min(evaluation.options.n_parallel, requests.size())),
          n_prefix_(common_prefix(requests)),
          answers_(requests.size()),
          slots_(n_slots_),
          batch_(std::max(kUbatch, n_slots_)) {
        size_t longest = 0;
        for (const GenerationRequest& request : requests) {
            longest = std::max(longest, request.prompt.size() + request.max_tokens);
        }
        constexpr size_t kCellMultiple = 256;
        longest = (longest + kCellMultiple - 1) / kCellMultiple * kCellMultiple;
        context_ = host_.make_context(cache, {longest, kUbatch, n_slots_ + 1});
        read(requests.front().prompt, 0, n_prefix_, n_slots_);
    }

    std::vector<Generation> run(Progress& progress) {
        size_t next = 0;
        size_t done = 0;
        while (done < requests_.size()) {
            check_interrupted();
            for (size_t s = 0; s < n_slots_; ++s) {
                while (!slots_[s].busy && next < requests_.size()) {
                    start(s, next++);
                    done += slots_[s].busy ? 0 : 1;
                }
            }
            done += step();
            progress.update(done, requests_.size());
        }
        return std::move(answers_);
    }

    Json accounting() const { return context_->accounting(); }

  private:
    struct Slot {
        size_t request = 0;
        llama_token last = 0;
        llama_pos position = 0;
        bool busy = false;
    };

    llama_memory_t memory() const { return llama_get_memory(context_->get()); }

    // Returns the logits behind the last token, if there was one.
    const float* read(const std::vector<llama_token>& tokens, size_t begin, size_t end, size_t sequence) {
        for (size_t at = begin; at < end; at += kUbatch) {
            batch_.clear();
            for (size_t i = at; i < std::min(at + kUbatch, end); ++i) {
                batch_.add(tokens[i], static_cast<llama_pos>(i), sequence, i + 1 == end);
            }
            context_->decode(batch_);
        }
        return begin < end ? llama_get_logits_ith(context_->get(), -1) : nullptr;
    }

    void start(size_t s, size_t request) {
        const auto sequence = static_cast<llama_seq_id>(s);
        const std::vector<llama_token>& prompt = requests_[request].prompt;
        llama_memory_seq_rm(memory(), sequence, -1, -1);
        if (n_prefix_ > 0) {
            llama_memory_seq_cp(memory(), static_cast<llama_seq_id>(n_slots_), sequence, -1, -1);
        }
        const float* logits = read(prompt, n_prefix_, prompt.size(), s);
        slots_[s] = {request, 0, static_cast<llama_pos>(prompt.size()), true};
        take(s, likeliest(logits, host_.n_vocab()));
    }

    // Returns whether the answer goes on.
    bool take(size_t s, llama_token token) {
        Slot& slot = slots_[s];
        const GenerationRequest& request = requests_[slot.request];
        Generation& answer = answers_[slot.request];
        answer.tokens.push_back(token);
        slot.last = token;
        answer.text = detokenize(host_.vocab(), answer.tokens);
        const std::string_view kept = before_stop(answer.text, request.stops);
        slot.busy = kept.size() == answer.text.size() && !llama_vocab_is_eog(host_.vocab(), token) &&
                    answer.tokens.size() < request.max_tokens;
        answer.text.resize(kept.size());
        return slot.busy;
    }

    // One token of every busy sequence; returns how many answers ended.
    size_t step() {
        batch_.clear();
        std::vector<size_t> rows;
        for (size_t s = 0; s < n_slots_; ++s) {
            if (slots_[s].busy) {
                batch_.add(slots_[s].last, slots_[s].position++, s, true);
                rows.push_back(s);
            }
        }
        if (rows.empty()) {
            return 0;
        }
        context_->decode(batch_);
        size_t ended = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            const float* logits = llama_get_logits_ith(context_->get(), static_cast<int32_t>(i));
            ended += take(rows[i], likeliest(logits, host_.n_vocab())) ? 0 : 1;
        }
        return ended;
    }

    const EvalHost& host_;
    const std::vector<GenerationRequest>& requests_;
    const size_t n_slots_;
    const size_t n_prefix_;
    std::vector<Generation> answers_;
    std::vector<Slot> slots_;
    TokenBatch batch_;
    std::unique_ptr<EvalContext> context_;
};

}  // namespace

std::vector<Generation> generate(const Evaluation& evaluation, const CacheSpec& cache,
                                 const std::vector<GenerationRequest>& requests, const std::string& label,
                                 Json* accounting) {
    if (requests.empty()) {
        return {};
    }
    Progress progress(label);
    Generator generator(evaluation, cache, requests);
    std::vector<Generation> answers = generator.run(progress);
    if (accounting != nullptr) {
        *accounting = generator.accounting();
    }
    progress.finish(fmt::format("{} answers", requests.size()));
    return answers;
}

std::vector<llama_token> chat_prompt(const EvalHost& host, const std::string& question) {
    const std::array<llama_chat_message, 1> chat = {{{"user", question.c_str()}}};
    const char* own = llama_model_chat_template(host.model(), nullptr);
    std::string text(question.size() * 2 + 1024, '\0');
    const int32_t n = own == nullptr ? -1
                                     : llama_chat_apply_template(own, chat.data(), chat.size(), true, text.data(),
                                                                 static_cast<int32_t>(text.size()));
    if (n < 0) {
        return tokenize(host.vocab(), question + "\n", true, false);
    }
    text.resize(static_cast<size_t>(n));
    return tokenize(host.vocab(), text, true, true);
}

}  // namespace kvcodec
