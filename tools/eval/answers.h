// Problems from files, and how generated answers are scored.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvcodec {

/// One line of a JSONL file in GSM8K's form: {"question", "answer"}.
struct Problem {
    std::string question;
    std::string answer;
};

/// The first `n` problems. Throws Error naming file and line if one is malformed, or if there are none.
std::vector<Problem> read_problems(const std::string& path, size_t n);
/// Lines of a JSONL file as text; empty ones are skipped. Throws Error if there are none.
std::vector<std::string> read_lines(const std::string& path);

/// The number that lm-evaluation-harness takes from a GSM8K answer: strict, behind the first "####"; flexible, the last
/// number of all. Commas, '$' and a final '.' are left out.
std::optional<std::string> strict_number(std::string_view answer);
std::optional<std::string> flexible_number(std::string_view answer);

/// The part of `text` before the first of `stops`.
std::string_view before_stop(std::string_view text, const std::vector<std::string>& stops);

/// LongBench's metrics, each in [0, 1]. Words are compared in lower case, without punctuation and (f1) articles.
double f1_score(std::string_view prediction, std::string_view truth);
/// F-measure of the longest common subsequence of words.
double rouge_l(std::string_view prediction, std::string_view truth);
/// 1 - edit distance / longer length, of characters, for the first line that is not a comment or a code fence.
double edit_similarity(std::string_view prediction, std::string_view truth);
/// 1 / (number of classes named in the prediction), if the true one is among them, else 0. A class that is part of
/// another named one does not count.
double classification_score(std::string_view prediction, std::string_view truth,
                            const std::vector<std::string>& classes);
/// Share of the numbers in the prediction that are the one in the truth ("Paragraph 7").
double number_score(std::string_view prediction, std::string_view truth);
/// 1 if the truth occurs in the prediction.
double contains_score(std::string_view prediction, std::string_view truth);
/// The letter behind the last "answer is", or the only letter of the text.
std::optional<char> chosen_letter(std::string_view answer, size_t n_choices);

}  // namespace kvcodec
