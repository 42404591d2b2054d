// Suites that compare next-token distributions: `kld` over a text, `solutions` over the model's own answers.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <span>
#include <thread>

#include "kvcodec/error.h"
#include "tools/eval/answers.h"
#include "tools/eval/evaluation.h"
#include "tools/eval/generation.h"
#include "tools/eval/statistics.h"
#include "tools/progress.h"
#include "tools/text_file.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

// Reads one sequence into the reference and into every other context, `step` tokens at a time, and compares their
// predictions from token `first` on.
class Comparison {
  public:
    Comparison(const Evaluation& evaluation, std::span<const CacheSpec> caches, const ContextShape& shape)
        : host_(evaluation.host),
          batch_(shape.n_ubatch),
          reference_(evaluation.host.make_context(reference_cache(), shape)),
          series_(caches.size()) {
        for (const CacheSpec& spec : caches) {
            contexts_.push_back(evaluation.host.make_context(spec, shape));
        }
    }

    void read(std::span<const llama_token> tokens, size_t first, size_t step) {
        reference_->clear();
        for (const auto& context : contexts_) {
            context->clear();
        }
        for (size_t begin = 0; begin < tokens.size(); begin += step) {
            check_interrupted();
            const size_t end = std::min(begin + step, tokens.size());
            batch_.clear();
            for (size_t i = begin; i < end; ++i) {
                batch_.add(tokens[i], static_cast<llama_pos>(i), 0, i >= first && i + 1 < tokens.size());
            }
            reference_->decode(batch_);
            for (size_t c = 0; c < contexts_.size(); ++c) {
                contexts_[c]->decode(batch_);
                compare(c, tokens, begin, end);
            }
        }
    }

    const DivergenceSeries& series(size_t cache) const { return series_[cache]; }
    /// To be asked while the last sequence is still in the caches.
    Json accounting(size_t cache) const { return contexts_[cache]->accounting(); }

  private:
    void compare(size_t c, std::span<const llama_token> tokens, size_t begin, size_t end) {
        std::vector<TokenDivergence> found(end - begin);
        std::vector<uint8_t> wanted(end - begin);
        for (size_t i = begin; i < end; ++i) {
            wanted[i - begin] = batch_.get().logits[i - begin] != 0 ? 1 : 0;
        }
        const auto work = [&](size_t thread) {
            for (size_t i = thread; i < found.size(); i += host_.n_threads()) {
                if (wanted[i] != 0) {
                    const auto row = static_cast<int32_t>(i);
                    found[i] = divergence(llama_get_logits_ith(reference_->get(), row),
                                          llama_get_logits_ith(contexts_[c]->get(), row), host_.n_vocab(),
                                          tokens[begin + i + 1]);
                }
            }
        };
        {
            std::vector<std::jthread> threads;
            for (size_t thread = 1; thread < host_.n_threads(); ++thread) {
                threads.emplace_back(work, thread);
            }
            work(0);
        }
        for (size_t i = 0; i < found.size(); ++i) {
            if (wanted[i] != 0) {
                series_[c].add(found[i]);
            }
        }
    }

    const EvalHost& host_;
    TokenBatch batch_;
    std::unique_ptr<EvalContext> reference_;
    std::vector<std::unique_ptr<EvalContext>> contexts_;
    std::vector<DivergenceSeries> series_;
};

Json summary(const DivergenceSeries& series) {
    const Estimate kld = mean_of(series.kld);
    const Estimate top = share_of(series.n_same_top, series.size());
    const Estimate ratio = perplexity_ratio(series);
    return {{"tokens", series.size()},
            {"kld", kld.value},
            {"kld_error", kld.error},
            {"kld_median", quantile(series.kld, 0.5)},
            {"kld_99", quantile(series.kld, 0.99)},
            {"kld_99.9", quantile(series.kld, 0.999)},
            {"kld_max", quantile(series.kld, 1.0)},
            {"same_top", top.value},
            {"same_top_error", top.error},
            {"perplexity_f16", std::exp(mean_of(series.nll_p).value)},
            {"perplexity_ratio", ratio.value},
            {"perplexity_ratio_error", ratio.error}};
}

void put(Evaluation& evaluation, const std::string& suite, const Json& settings, const CacheSpec& spec,
         const Comparison& comparison, size_t cache) {
    Json result = summary(comparison.series(cache));
    result.update(comparison.accounting(cache));
    result["refused"] = result["pairs_through_codes"].get<double>() < kLeastPairsThroughCodes;
    evaluation.results.put(suite, spec.name, settings_of(spec, settings), std::move(result));
}

// As llama-perplexity cuts a text: pieces of n_ctx tokens, the first of each replaced by BOS where the model has one.
std::vector<std::vector<llama_token>> chunks_of(const EvalHost& host, const std::string& path, size_t n_ctx,
                                                size_t n_chunks) {
    const std::string text = read_text(path);
    // No tokenizer makes more bytes into one token, on average, in ordinary text.
    constexpr size_t kBytesPerToken = 16;
    const std::vector<llama_token> tokens =
        tokenize(host.vocab(), std::string_view(text).substr(0, n_chunks * n_ctx * kBytesPerToken), true, false);
    if (tokens.size() < n_chunks * n_ctx) {
        throw Error(fmt::format("{} has {} tokens, {} chunks of {} need {}; give a longer --text or fewer --chunks",
                                path, tokens.size(), n_chunks, n_ctx, n_chunks * n_ctx));
    }
    std::vector<std::vector<llama_token>> chunks;
    for (size_t c = 0; c < n_chunks; ++c) {
        const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(c * n_ctx);
        chunks.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(n_ctx));
        if (llama_vocab_get_add_bos(host.vocab())) {
            chunks.back().front() = llama_vocab_bos(host.vocab());
        }
    }
    return chunks;
}

Json text_settings(const EvalOptions& options, const std::string& text, size_t n_ctx) {
    return {{"text", fs::path(text).filename().string()},
            {"text_checksum", file_checksum(text)},
            {"n_ctx", n_ctx},
            {"chunks", options.n_chunks}};
}

void run_kld_on(Evaluation& evaluation, const std::string& text) {
    const EvalOptions& options = evaluation.options;
    for (const size_t n_ctx : options.n_ctx) {
        const Json settings = text_settings(options, text, n_ctx);
        for (const auto& group : evaluation.pending("kld", settings)) {
            const auto chunks = chunks_of(evaluation.host, text, n_ctx, options.n_chunks);
            Progress progress(fmt::format("kld at {} tokens, {} caches", n_ctx, group.size()));
            const ContextShape shape{n_ctx, std::min<size_t>(n_ctx, 512), 1};
            Comparison comparison(evaluation, group, shape);
            for (size_t c = 0; c < chunks.size(); ++c) {
                comparison.read(chunks[c], n_ctx / 2, shape.n_ubatch);
                progress.update(c + 1, chunks.size(), fmt::format("chunk {} of {}", c + 1, chunks.size()));
            }
            for (size_t i = 0; i < group.size(); ++i) {
                put(evaluation, "kld", settings, group[i], comparison, i);
            }
            progress.finish(fmt::format("{} chunks", chunks.size()));
        }
    }
}

}  // namespace

void run_kld(Evaluation& evaluation) {
    for (const std::string& text : evaluation.options.texts) {
        run_kld_on(evaluation, text);
    }
}

void run_solutions(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    // Tokens of an answer that are read at once: few, so that most keys are old enough to be codes.
    constexpr size_t kStep = 32;
    const std::vector<Problem> problems = read_problems(options.problems, options.n_problems);
    const Json settings = {{"problems", fs::path(options.problems).filename().string()},
                           {"problems_checksum", file_checksum(options.problems)},
                           {"n", problems.size()},
                           {"max_tokens", options.max_tokens}};
    for (const auto& group : evaluation.pending("solutions", settings)) {
        std::vector<GenerationRequest> requests;
        for (const Problem& problem : problems) {
            requests.push_back({chat_prompt(evaluation.host, problem.question), options.max_tokens, {}});
        }
        const std::vector<Generation> answers =
            generate(evaluation, reference_cache(), requests, "solutions: the model's own answers");
        size_t longest = 0;
        for (size_t i = 0; i < answers.size(); ++i) {
            longest = std::max(longest, requests[i].prompt.size() + answers[i].tokens.size());
        }
        Progress progress(fmt::format("solutions, {} caches", group.size()));
        Comparison comparison(evaluation, group, {(longest + 255) / 256 * 256, kStep, 1});
        for (size_t i = 0; i < answers.size(); ++i) {
            std::vector<llama_token> tokens = requests[i].prompt;
            tokens.insert(tokens.end(), answers[i].tokens.begin(), answers[i].tokens.end());
            comparison.read(tokens, requests[i].prompt.size() - 1, kStep);
            progress.update(i + 1, answers.size());
        }
        for (size_t i = 0; i < group.size(); ++i) {
            put(evaluation, "solutions", settings, group[i], comparison, i);
        }
        progress.finish(fmt::format("{} answers", answers.size()));
    }
}

namespace {

void run_recon_on(Evaluation& evaluation, const std::string& text) {
    const EvalOptions& options = evaluation.options;
    const size_t n_ctx = *std::ranges::max_element(options.n_ctx);
    const Json settings = text_settings(options, text, n_ctx);
    for (const auto& group : evaluation.pending("recon", settings, true)) {
        const auto chunks = chunks_of(evaluation.host, text, n_ctx, options.n_chunks);
        Progress progress(fmt::format("recon at {} tokens, {} caches", n_ctx, group.size()));
        const ContextShape shape{n_ctx, std::min<size_t>(n_ctx, 512), 1};
        TokenBatch batch(shape.n_ubatch);
        for (size_t i = 0; i < group.size(); ++i) {
            CacheSpec spec = group[i];
            spec.options += ",measure=error";
            const auto context = evaluation.host.make_context(spec, shape);
            for (size_t c = 0; c < chunks.size(); ++c) {
                context->clear();
                for (size_t begin = 0; begin < n_ctx; begin += shape.n_ubatch) {
                    check_interrupted();
                    batch.clear();
                    for (size_t t = begin; t < std::min(begin + shape.n_ubatch, n_ctx); ++t) {
                        batch.add(chunks[c][t], static_cast<llama_pos>(t), 0, false);
                    }
                    context->decode(batch);
                }
                progress.update(i * chunks.size() + c + 1, group.size() * chunks.size());
            }
            Json result = context->accounting();
            result["distortion"] = context->report().value("distortion", Json::array());
            evaluation.results.put("recon", group[i].name, settings_of(group[i], settings), std::move(result));
        }
        progress.finish(fmt::format("{} caches", group.size()));
    }
}

}  // namespace

void run_recon(Evaluation& evaluation) {
    for (const std::string& text : evaluation.options.texts) {
        run_recon_on(evaluation, text);
    }
}

}  // namespace kvcodec
