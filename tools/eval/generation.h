// Greedy text from one cache, several sequences side by side.
#pragma once

#include <string>
#include <vector>

#include "tools/eval/evaluation.h"

namespace kvcodec {

struct GenerationRequest {
    std::vector<llama_token> prompt;
    size_t max_tokens = 256;
    std::vector<std::string> stops;  ///< text that ends an answer, and is not part of it
};

struct Generation {
    std::vector<llama_token> tokens;  ///< the end-of-generation token included, if one came
    std::string text;                 ///< up to the first stop
};

/// Answers in the order of the requests. What all prompts share at their beginning is computed once. `label` names the
/// progress line. The accounting of the cache, with its last sequences in it, goes to `accounting` if that is given.
std::vector<Generation> generate(const Evaluation& evaluation, const CacheSpec& cache,
                                 const std::vector<GenerationRequest>& requests, const std::string& label,
                                 Json* accounting = nullptr);

/// A question in the model's own chat form; as plain text where llama.cpp knows no template for it.
std::vector<llama_token> chat_prompt(const EvalHost& host, const std::string& question);

}  // namespace kvcodec
