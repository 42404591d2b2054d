// libllama behind a few small types: what the subcommands that run a model share.
#pragma once

#include <ggml-backend.h>
#include <llama.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kvcodec {

struct LlamaModelDeleter {
    void operator()(llama_model* model) const { llama_model_free(model); }
};
struct LlamaContextDeleter {
    void operator()(llama_context* context) const { llama_free(context); }
};
using LlamaModel = std::unique_ptr<llama_model, LlamaModelDeleter>;
using LlamaContext = std::unique_ptr<llama_context, LlamaContextDeleter>;

/// Loads llama.cpp's CPU backend. Throws Error if it cannot be found.
void load_cpu_backend();
/// Loads a plug-in and returns its first device. Throws Error if the file is missing or not accepted by this llama.cpp.
ggml_backend_dev_t load_plugin(const std::string& path);

/// The model, its weights on the CPU; KV caches go to `device`, or stay on the CPU when it is null. Throws Error.
LlamaModel load_llama_model(const std::string& path, ggml_backend_dev_t device = nullptr);
/// Throws Error if the context cannot be made.
LlamaContext make_llama_context(llama_model* model, const llama_context_params& params);

/// Tokens with the special ones that the model wants at the start; `parse_special`: markup such as <|im_end|> becomes
/// the token that it names. Throws Error if the text cannot be tokenised.
std::vector<llama_token> tokenize(const llama_vocab* vocab, std::string_view text, bool add_special,
                                  bool parse_special);
/// Text of tokens, special ones left out.
std::string detokenize(const llama_vocab* vocab, const std::vector<llama_token>& tokens);

/// The last error line of llama.cpp's log, which is otherwise silent.
const std::string& last_host_error();
/// What plug-ins have warned of since the start, a line each.
const std::vector<std::string>& plugin_warnings();

class TokenBatch {
  public:
    explicit TokenBatch(size_t capacity) : batch_(llama_batch_init(static_cast<int32_t>(capacity), 0, 1)) {}
    ~TokenBatch() { llama_batch_free(batch_); }
    TokenBatch(const TokenBatch&) = delete;
    TokenBatch& operator=(const TokenBatch&) = delete;

    void clear() { batch_.n_tokens = 0; }
    size_t size() const { return static_cast<size_t>(batch_.n_tokens); }
    void add(llama_token token, llama_pos position, size_t sequence, bool logits) {
        const int32_t i = batch_.n_tokens++;
        batch_.token[i] = token;
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = static_cast<llama_seq_id>(sequence);
        batch_.logits[i] = logits ? 1 : 0;
    }
    const llama_batch& get() const { return batch_; }

  private:
    llama_batch batch_;
};

}  // namespace kvcodec
