// Suites that score generated answers: gsm8k, retrieval, needle, ruler, longbench, choice, generate.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <random>

#include "kvcodec/error.h"
#include "tools/eval/answers.h"
#include "tools/eval/evaluation.h"
#include "tools/eval/generation.h"
#include "tools/eval/statistics.h"
#include "tools/text_file.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

/// One question and how its answer is scored, from 0 to 1. `group` is what scores are averaged by.
struct Task {
    GenerationRequest request;
    std::function<double(const std::string& answer)> score;
    std::string group;
    std::function<double(const std::string& answer)> strict_score;  ///< a second, stricter reading; may be empty
};

std::vector<llama_token> plain(const Evaluation& evaluation, const std::string& text) {
    return tokenize(evaluation.host.vocab(), text, true, false);
}

Json scores_json(const std::vector<Task>& tasks, const std::vector<double>& scores) {
    std::map<std::string, std::vector<float>> groups;
    for (size_t i = 0; i < tasks.size(); ++i) {
        groups[tasks[i].group].push_back(static_cast<float>(scores[i]));
    }
    Json by_group = Json::object();
    for (const auto& [name, values] : groups) {
        const Estimate mean = mean_of(values);
        by_group[name] = {{"n", values.size()}, {"score", mean.value}, {"error", mean.error}};
    }
    return by_group;
}

// Scores of one cache: with intervals, and compared problem by problem with f16 where answers are right or wrong.
Json score_answers(const std::vector<Task>& tasks, const std::vector<Generation>& answers, const Json* reference) {
    std::vector<double> scores;
    std::vector<float> floats;
    for (size_t i = 0; i < tasks.size(); ++i) {
        scores.push_back(tasks[i].score(answers[i].text));
        floats.push_back(static_cast<float>(scores.back()));
    }
    const Estimate mean = mean_of(floats);
    Json result = {{"n", tasks.size()},
                   {"score", mean.value},
                   {"error", mean.error},
                   {"scores", scores},
                   {"groups", scores_json(tasks, scores)}};
    if (!tasks.empty() && tasks.front().strict_score) {
        std::vector<float> strict;
        for (size_t i = 0; i < tasks.size(); ++i) {
            strict.push_back(static_cast<float>(tasks[i].strict_score(answers[i].text)));
        }
        result["strict_score"] = mean_of(strict).value;
    }
    const bool binary = std::ranges::all_of(scores, [](double s) { return s == 0 || s == 1; });
    if (binary) {
        const auto n_right = static_cast<size_t>(std::ranges::count(scores, 1.0));
        const Interval interval = wilson_interval(n_right, scores.size());
        result["interval"] = {interval.low, interval.high};
    }
    if (reference != nullptr) {
        const auto base = (*reference)["scores"].get<std::vector<double>>();
        size_t only_reference = 0;
        size_t only_cache = 0;
        for (size_t i = 0; i < scores.size(); ++i) {
            only_reference += base[i] > scores[i] ? 1 : 0;
            only_cache += base[i] < scores[i] ? 1 : 0;
        }
        result["only_f16_right"] = only_reference;
        result["only_cache_right"] = only_cache;
        if (binary) {
            result["mcnemar_p"] = mcnemar_p(only_reference, only_cache);
        }
    }
    return result;
}

Json run_tasks(const Evaluation& evaluation, const std::string& suite, const CacheSpec& cache,
               const std::vector<Task>& tasks, const Json* reference) {
    std::vector<GenerationRequest> requests;
    for (const Task& task : tasks) {
        requests.push_back(task.request);
    }
    Json accounting;
    const auto answers = generate(evaluation, cache, requests, fmt::format("{}, {}", suite, cache.name), &accounting);
    Json result = score_answers(tasks, answers, reference);
    result.update(accounting);
    result["answers"] = Json::array();
    constexpr size_t kShown = 16;
    for (size_t i = 0; i < std::min(kShown, answers.size()); ++i) {
        result["answers"].push_back(answers[i].text);
    }
    return result;
}

// The f16 cache once, then every cache that has no result yet, each against it.
void run_task_suite(Evaluation& evaluation, const std::string& suite, const Json& settings,
                    const std::function<std::vector<Task>()>& make_tasks) {
    const auto pending = evaluation.pending(suite, settings);
    const CacheSpec f16 = reference_cache();
    std::optional<Json> reference = evaluation.results.find(suite, f16.name, settings);
    if (pending.empty() && reference) {
        return;
    }
    const std::vector<Task> tasks = make_tasks();
    if (!reference) {
        reference = run_tasks(evaluation, suite, f16, tasks, nullptr);
        evaluation.results.put(suite, f16.name, settings, *reference);
    }
    for (const auto& group : pending) {
        for (const CacheSpec& cache : group) {
            evaluation.results.put(suite, cache.name, settings_of(cache, settings),
                                   run_tasks(evaluation, suite, cache, tasks, &*reference));
        }
    }
}

/// A task from each line of --tasks. `make` may return nothing, or let the parser's errors through, where a line is not
/// an object with `members`.
std::vector<Task> tasks_of_file(const Evaluation& evaluation, std::string_view members,
                                const std::function<std::optional<Task>(const Json& json)>& make) {
    std::vector<Task> tasks;
    for (const std::string& line : read_lines(evaluation.options.tasks)) {
        if (tasks.size() == evaluation.options.n_problems) {
            break;
        }
        std::optional<Task> task;
        try {
            task = make(Json::parse(line));
        } catch (const Json::exception&) {
            task.reset();
        }
        if (!task) {
            throw Error(
                fmt::format("{}, line {}: not an object with {}", evaluation.options.tasks, tasks.size() + 1, members));
        }
        tasks.push_back(std::move(*task));
    }
    return tasks;
}

// ---- gsm8k ---------------------------------------------------------------------------------------------------------

std::vector<Task> gsm8k_tasks(const Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    const auto examples =
        options.n_shots == 0 ? std::vector<Problem>{} : read_problems(options.examples, options.n_shots);
    std::string shots;
    for (const Problem& example : examples) {
        shots += fmt::format("Question: {}\nAnswer: {}\n\n", example.question, example.answer);
    }
    std::vector<Task> tasks;
    for (const Problem& problem : read_problems(options.problems, options.n_problems)) {
        const std::string right = strict_number(problem.answer).value_or("");
        Task task;
        task.request = {plain(evaluation, fmt::format("{}Question: {}\nAnswer:", shots, problem.question)),
                        options.max_tokens,
                        {"Question:", "</s>", "<|im_end|>"}};
        task.score = [right](const std::string& answer) { return flexible_number(answer) == right ? 1.0 : 0.0; };
        task.strict_score = [right](const std::string& answer) { return strict_number(answer) == right ? 1.0 : 0.0; };
        task.group = "gsm8k";
        tasks.push_back(std::move(task));
    }
    return tasks;
}

// ---- key-value retrieval -------------------------------------------------------------------------------------------

std::string hex(std::mt19937_64& random, size_t n) {
    std::string text;
    for (size_t i = 0; i < n; ++i) {
        text += "0123456789abcdef"[random() % 16];
    }
    return text;
}

using Records = std::vector<std::pair<std::string, std::string>>;

/// The value of one key of a list is asked for; only exactly that value is right.
Task retrieval_task(const Evaluation& evaluation, const Records& records, const std::string& key, std::string value,
                    size_t max_tokens) {
    std::string list;
    for (const auto& [name, content] : records) {
        list += fmt::format("\"{}\": \"{}\",\n", name, content);
    }
    Task task;
    task.request = {plain(evaluation, fmt::format("A list of keys and their values:\n{{\n{}}}\n\nThe value of the key "
                                                  "\"{}\" in the list above:\n\"{}\": \"",
                                                  list, key, key)),
                    max_tokens,
                    {"\""}};
    task.score = [value = std::move(value)](const std::string& answer) { return answer == value ? 1.0 : 0.0; };
    task.group = fmt::format("{} pairs", records.size());
    return task;
}

/// Pairs of random strings.
std::vector<Task> retrieval_tasks(const Evaluation& evaluation, size_t n_pairs) {
    constexpr size_t kMaxTokens = 16;
    std::mt19937_64 random(evaluation.options.seed);
    std::vector<Task> tasks;
    for (size_t i = 0; i < evaluation.options.n_problems; ++i) {
        Records records;
        for (size_t p = 0; p < n_pairs; ++p) {
            std::string key = hex(random, 8);
            records.emplace_back(std::move(key), hex(random, 8));
        }
        const auto& [key, value] = records[random() % n_pairs];
        tasks.push_back(retrieval_task(evaluation, records, key, value, kMaxTokens));
    }
    return tasks;
}

/// Lines {"ordered_kv_records", "key", "value"} as "Lost in the Middle" (Liu et al., 2023) has them.
std::vector<Task> retrieval_tasks_of_file(const Evaluation& evaluation) {
    constexpr size_t kMaxTokens = 48;
    return tasks_of_file(
        evaluation, R"("ordered_kv_records" (pairs of strings), "key" and "value")", [&](const Json& json) {
            return retrieval_task(evaluation, json.at("ordered_kv_records").get<Records>(),
                                  json.at("key").get<std::string>(), json.at("value").get<std::string>(), kMaxTokens);
        });
}

// ---- needle in a haystack ------------------------------------------------------------------------------------------

/// A sentence with a number, hidden at a depth (share of the text) in a text of a length (tokens).
std::vector<Task> needle_tasks(const Evaluation& evaluation) {
    constexpr size_t kDepths = 5;
    constexpr size_t kRoomForQuestion = 96;
    const EvalOptions& options = evaluation.options;
    const std::string text = read_text(options.texts.front());
    const llama_vocab* vocab = evaluation.host.vocab();
    const size_t longest = *std::ranges::max_element(options.n_ctx);
    const auto hay = tokenize(vocab, std::string_view(text).substr(0, longest * 16), false, false);
    if (hay.size() < longest) {
        throw Error(fmt::format("{} has only {} tokens, a haystack of {} was asked for; give a longer --text",
                                options.texts.front(), hay.size(), longest));
    }
    std::mt19937_64 random(options.seed);
    std::vector<Task> tasks;
    for (const size_t n_ctx : options.n_ctx) {
        const size_t length = n_ctx - std::min(n_ctx / 2, kRoomForQuestion);
        for (size_t d = 0; d < kDepths; ++d) {
            for (size_t i = 0; i < std::max<size_t>(options.n_problems / (kDepths * options.n_ctx.size()), 1); ++i) {
                const size_t number = 10000 + random() % 90000;
                const auto needle = tokenize(
                    vocab, fmt::format("\nThe secret number of the lighthouse is {}.\n", number), false, false);
                const size_t start = random() % (hay.size() - length + 1);
                const size_t at = length * d / (kDepths - 1);
                const auto begin = hay.begin() + static_cast<std::ptrdiff_t>(start);
                std::vector<llama_token> prompt = plain(evaluation, "");
                prompt.insert(prompt.end(), begin, begin + static_cast<std::ptrdiff_t>(at));
                prompt.insert(prompt.end(), needle.begin(), needle.end());
                prompt.insert(prompt.end(), begin + static_cast<std::ptrdiff_t>(at),
                              begin + static_cast<std::ptrdiff_t>(length));
                const auto question =
                    tokenize(vocab, "\n\nThe text above names a secret number. The secret number of the lighthouse is",
                             false, false);
                prompt.insert(prompt.end(), question.begin(), question.end());
                Task task;
                task.request = {std::move(prompt), 12, {"\n"}};
                task.score = [number](const std::string& answer) {
                    return contains_score(answer, std::to_string(number));
                };
                task.group = fmt::format("{} tokens, depth {} %", n_ctx, 100 * d / (kDepths - 1));
                tasks.push_back(std::move(task));
            }
        }
    }
    return tasks;
}

// ---- RULER-like: variable tracking and frequent words
// -----------------------------------------------------------------

constexpr std::array kFiller = {"The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
                                "There and back again."};

/// Chains of assignments X1 = 12345, X2 = X1, ... hidden in filler; all names with the value are asked for.
std::vector<Task> variable_tasks(const Evaluation& evaluation, size_t n_ctx) {
    constexpr size_t kHops = 4;
    constexpr size_t kTokensPerLine = 7;
    std::mt19937_64 random(evaluation.options.seed);
    std::vector<Task> tasks;
    for (size_t i = 0; i < evaluation.options.n_problems; ++i) {
        const size_t n_lines = n_ctx / kTokensPerLine > 24 ? n_ctx / kTokensPerLine - 24 : 8;
        std::vector<std::string> lines;
        for (size_t l = 0; l < n_lines; ++l) {
            lines.emplace_back(kFiller[l % kFiller.size()]);
        }
        std::vector<std::string> names;
        std::vector<size_t> places;
        for (size_t h = 0; h <= kHops; ++h) {
            std::string name;
            for (size_t c = 0; c < 4; ++c) {
                name += static_cast<char>('A' + random() % 26);
            }
            names.push_back(name);
            places.push_back(random() % n_lines);
        }
        std::ranges::sort(places);
        const size_t value = 10000 + random() % 90000;
        for (size_t h = kHops + 1; h-- > 0;) {
            const std::string line = h == 0 ? fmt::format("VAR {} = {}.", names[0], value)
                                            : fmt::format("VAR {} = VAR {}.", names[h], names[h - 1]);
            lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(places[h]), line);
        }
        std::string text;
        for (const std::string& line : lines) {
            text += line + "\n";
        }
        Task task;
        task.request = {plain(evaluation, fmt::format("{}\nQuestion: Find all variables that are assigned the value {} "
                                                      "in the text above.\nAnswer: The variables are VAR {},",
                                                      text, value, names[0])),
                        48,
                        {"\n"}};
        task.score = [names](const std::string& answer) {
            double found = 0;
            for (size_t h = 1; h < names.size(); ++h) {
                found += contains_score(answer, names[h]);
            }
            return found / static_cast<double>(names.size() - 1);
        };
        task.group = fmt::format("variables, {} tokens", n_ctx);
        tasks.push_back(std::move(task));
    }
    return tasks;
}

/// Made-up words of which three come far more often than the others (a power law); these are asked for.
std::vector<Task> frequent_word_tasks(const Evaluation& evaluation, size_t n_ctx) {
    constexpr size_t kTokensPerWord = 4;
    constexpr size_t kAsked = 3;
    std::mt19937_64 random(evaluation.options.seed);
    std::vector<Task> tasks;
    for (size_t i = 0; i < evaluation.options.n_problems; ++i) {
        const size_t n_words = std::max<size_t>(n_ctx / kTokensPerWord, 64) - 32;
        std::vector<std::string> words;
        while (words.size() < n_words / 4 + kAsked) {
            std::string word;
            for (size_t syllable = 0; syllable < 3; ++syllable) {
                word += "bcdfghklmnprstvz"[random() % 16];
                word += "aeiou"[random() % 5];
            }
            if (std::ranges::find(words, word) == words.end()) {
                words.push_back(word);
            }
        }
        std::vector<std::string> text;
        for (size_t w = 0; w < kAsked; ++w) {
            text.insert(text.end(), n_words / (6 + 2 * w), words[w]);
        }
        while (text.size() < n_words) {
            text.push_back(words[kAsked + random() % (words.size() - kAsked)]);
        }
        for (size_t k = text.size() - 1; k > 0; --k) {
            std::swap(text[k], text[random() % (k + 1)]);
        }
        std::string joined;
        for (const std::string& word : text) {
            joined += word + " ";
        }
        Task task;
        task.request = {plain(evaluation, fmt::format("Coded text: {}\n\nQuestion: What are the three most frequent "
                                                      "words in the coded text above?\nAnswer: The three most "
                                                      "frequent words are:",
                                                      joined)),
                        48,
                        {"\n\n"}};
        task.score = [top =
                          std::vector<std::string>(words.begin(), words.begin() + kAsked)](const std::string& answer) {
            double found = 0;
            for (const std::string& word : top) {
                found += contains_score(answer, word);
            }
            return found / static_cast<double>(top.size());
        };
        task.group = fmt::format("frequent words, {} tokens", n_ctx);
        tasks.push_back(std::move(task));
    }
    return tasks;
}

// ---- LongBench and multiple choice ---------------------------------------------------------------------------------

enum class Metric : uint8_t { kF1, kRougeL, kClassification, kEdit, kNumber, kContains };

/// The metric of LongBench's tasks, and how their answers are asked for.
struct LongBenchTask {
    std::string_view name;
    Metric metric;
    size_t max_tokens;
    std::string_view instruction;
    bool first_line = false;  ///< only the first line of an answer is scored
};

constexpr std::string_view kAnswerShortly = "Answer the question about the text in a few words.";
constexpr std::string_view kSummarise = "Write a summary of the text.";
constexpr LongBenchTask kLongBench[] = {
    {"narrativeqa", Metric::kF1, 128, kAnswerShortly},
    {"qasper", Metric::kF1, 128, kAnswerShortly},
    {"multifieldqa_en", Metric::kF1, 64, kAnswerShortly},
    {"hotpotqa", Metric::kF1, 32, kAnswerShortly},
    {"2wikimqa", Metric::kF1, 32, kAnswerShortly},
    {"musique", Metric::kF1, 32, kAnswerShortly},
    {"triviaqa", Metric::kF1, 32, kAnswerShortly, true},
    {"gov_report", Metric::kRougeL, 512, kSummarise},
    {"qmsum", Metric::kRougeL, 512, "Answer the question about the meeting in a few sentences."},
    {"multi_news", Metric::kRougeL, 512, kSummarise},
    {"samsum", Metric::kRougeL, 128, "Summarise the dialogue.", true},
    {"trec", Metric::kClassification, 64, "Name the type of the last question.", true},
    {"passage_count", Metric::kNumber, 32, "Say how many different paragraphs there are."},
    {"passage_retrieval_en", Metric::kNumber, 32, "Name the paragraph that the summary is of."},
    {"lcc", Metric::kEdit, 64, "Complete the code."},
    {"repobench-p", Metric::kEdit, 64, "Complete the code."},
};

double score_by(Metric metric, std::string_view prediction, std::string_view truth,
                const std::vector<std::string>& classes) {
    switch (metric) {
        case Metric::kF1:
            return f1_score(prediction, truth);
        case Metric::kRougeL:
            return rouge_l(prediction, truth);
        case Metric::kClassification:
            return classification_score(prediction, truth, classes);
        case Metric::kEdit:
            return edit_similarity(prediction, truth);
        case Metric::kNumber:
            return number_score(prediction, truth);
        case Metric::kContains:
            break;
    }
    return contains_score(prediction, truth);
}

std::vector<Task> longbench_tasks(const Evaluation& evaluation) {
    return tasks_of_file(
        evaluation, R"("dataset" (one of LongBench's), "context", "input" and "answers")",
        [&](const Json& json) -> std::optional<Task> {
            const auto* kind =
                std::ranges::find(kLongBench, json.at("dataset").get<std::string>(), &LongBenchTask::name);
            const auto answers = json.at("answers").get<std::vector<std::string>>();
            if (kind == std::end(kLongBench) || answers.empty()) {
                return std::nullopt;
            }
            const auto context = json.at("context").get<std::string>();
            const auto input = json.value("input", "");
            const Json classes = json.value("all_classes", Json());
            const bool code = kind->metric == Metric::kEdit;
            const std::string text =
                code ? context + input : fmt::format("{}\n\n{}\n\n{}", kind->instruction, context, input);
            Task task;
            task.request = {code ? plain(evaluation, text) : chat_prompt(evaluation.host, text), kind->max_tokens, {}};
            task.score = [answers, kind,
                          classes = classes.is_array() ? classes.get<std::vector<std::string>>()
                                                       : std::vector<std::string>()](const std::string& answer) {
                std::string_view read = answer;
                if (kind->first_line) {
                    read.remove_prefix(std::min(read.find_first_not_of('\n'), read.size()));
                    read = read.substr(0, read.find('\n'));
                }
                double best = 0;
                for (const std::string& truth : answers) {
                    best = std::max(best, score_by(kind->metric, read, truth, classes));
                }
                return best;
            };
            task.group = std::string(kind->name);
            return task;
        });
}

/// Lines {"question", "options": [...], "answer_index"} as MMLU-Pro has them.
std::vector<Task> choice_tasks(const Evaluation& evaluation) {
    return tasks_of_file(
        evaluation, R"("question", "options" (at most 26) and "answer_index" (from 0))",
        [&](const Json& json) -> std::optional<Task> {
            const auto choices = json.at("options").get<std::vector<std::string>>();
            const auto index = json.at("answer_index").get<int64_t>();
            const auto n = choices.size();
            if (n > 26 || index < 0 || static_cast<size_t>(index) >= n) {
                return std::nullopt;
            }
            std::string text = json.at("question").get<std::string>() + "\n";
            for (size_t i = 0; i < n; ++i) {
                text += fmt::format("{}. {}\n", static_cast<char>('A' + i), choices[i]);
            }
            text += "Think step by step, then end with \"The answer is (X)\", where X is the letter of your choice.";
            Task task;
            task.request = {chat_prompt(evaluation.host, text), evaluation.options.max_tokens, {}};
            task.score = [right = static_cast<char>('A' + index), n](const std::string& answer) {
                return chosen_letter(answer, n) == right ? 1.0 : 0.0;
            };
            task.group = json.value("category", "choice");
            return task;
        });
}

Json file_settings(const EvalOptions& options, const std::string& path) {
    return {{"file", fs::path(path).filename().string()},
            {"checksum", file_checksum(path)},
            {"n", options.n_problems},
            {"max_tokens", options.max_tokens}};
}

}  // namespace

void run_gsm8k(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    Json settings = file_settings(options, options.problems);
    settings["shots"] = options.n_shots;
    if (options.n_shots > 0) {
        settings["examples_checksum"] = file_checksum(options.examples);
    }
    run_task_suite(evaluation, "gsm8k", settings, [&] { return gsm8k_tasks(evaluation); });
}

void run_retrieval(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    if (!options.tasks.empty()) {
        run_task_suite(evaluation, "retrieval", file_settings(options, options.tasks),
                       [&] { return retrieval_tasks_of_file(evaluation); });
        return;
    }
    // A pair takes about 25 tokens.
    const size_t n_pairs = std::max<size_t>(*std::ranges::max_element(options.n_ctx) / 26, 2);
    const Json settings = {{"pairs", n_pairs}, {"n", options.n_problems}, {"seed", options.seed}};
    run_task_suite(evaluation, "retrieval", settings, [&] { return retrieval_tasks(evaluation, n_pairs); });
}

void run_needle(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    Json settings = file_settings(options, options.texts.front());
    settings["n_ctx"] = options.n_ctx;
    settings["seed"] = options.seed;
    run_task_suite(evaluation, "needle", settings, [&] { return needle_tasks(evaluation); });
}

void run_ruler(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    const Json settings = {{"n_ctx", options.n_ctx}, {"n", options.n_problems}, {"seed", options.seed}};
    run_task_suite(evaluation, "ruler", settings, [&] {
        std::vector<Task> tasks;
        for (const size_t n_ctx : options.n_ctx) {
            for (auto& some : {variable_tasks(evaluation, n_ctx), frequent_word_tasks(evaluation, n_ctx)}) {
                tasks.insert(tasks.end(), some.begin(), some.end());
            }
        }
        return tasks;
    });
}

void run_longbench(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    run_task_suite(evaluation, "longbench", file_settings(options, options.tasks),
                   [&] { return longbench_tasks(evaluation); });
}

void run_choice(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    run_task_suite(evaluation, "choice", file_settings(options, options.tasks),
                   [&] { return choice_tasks(evaluation); });
}

void run_generate(Evaluation& evaluation) {
    const EvalOptions& options = evaluation.options;
    const Json settings = {{"prompts", options.prompts}, {"max_tokens", options.max_tokens}};
    run_task_suite(evaluation, "generate", settings, [&] {
        std::vector<Task> tasks;
        for (const std::string& prompt : options.prompts) {
            tasks.push_back({{chat_prompt(evaluation.host, prompt), options.max_tokens, {}},
                             [](const std::string& answer) { return answer.empty() ? 0.0 : 1.0; },
                             "prompts",
                             {}});
        }
        return tasks;
    });
}

}  // namespace kvcodec
