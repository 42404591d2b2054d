#include "tools/eval/answers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>
#include <set>

#include "kvcodec/error.h"

namespace kvcodec {

namespace {

std::string lower(std::string_view text) {
    std::string result(text);
    std::ranges::transform(result, result.begin(), [](unsigned char c) { return std::tolower(c); });
    return result;
}

std::vector<std::string> words_of(std::string_view text, bool drop_articles) {
    std::vector<std::string> words;
    std::string word;
    const auto end_word = [&] {
        const bool article = word == "a" || word == "an" || word == "the";
        if (!word.empty() && !(drop_articles && article)) {
            words.push_back(word);
        }
        word.clear();
    };
    for (const char c : lower(text)) {
        const auto byte = static_cast<unsigned char>(c);
        if (std::isspace(byte) != 0) {
            end_word();
        } else if (std::ispunct(byte) == 0) {
            word += c;
        }
    }
    end_word();
    return words;
}

double harmonic(double common, size_t n_prediction, size_t n_truth) {
    if (common == 0) {
        return 0;
    }
    const double precision = common / static_cast<double>(n_prediction);
    const double recall = common / static_cast<double>(n_truth);
    return 2 * precision * recall / (precision + recall);
}

// cost(i, j) recurrences over two sequences with one row of memory.
template <typename Sequence>
size_t longest_common_subsequence(const Sequence& a, const Sequence& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t i = 0; i < a.size(); ++i) {
        size_t diagonal = 0;
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t above = row[j + 1];
            row[j + 1] = a[i] == b[j] ? diagonal + 1 : std::max(above, row[j]);
            diagonal = above;
        }
    }
    return row.back();
}

size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t above = row[j + 1];
            row[j + 1] = std::min({above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0 : 1)});
            diagonal = above;
        }
    }
    return row.back();
}

std::string clean_number(std::string number) {
    std::erase_if(number, [](char c) { return c == ',' || c == '$'; });
    if (number.ends_with('.')) {
        number.pop_back();
    }
    return number;
}

std::optional<std::string> last_match(std::string_view text, const std::regex& pattern) {
    std::optional<std::string> last;
    for (std::cregex_iterator it(text.data(), text.data() + text.size(), pattern), end; it != end; ++it) {
        last = it->str();
    }
    return last;
}

}  // namespace

std::vector<std::string> read_lines(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) {
        if (line.find_first_not_of(" \t\r") != std::string::npos) {
            lines.push_back(line);
        }
    }
    if (lines.empty()) {
        throw Error(fmt::format("{} cannot be read or has no lines", path));
    }
    return lines;
}

std::vector<Problem> read_problems(const std::string& path, size_t n) {
    std::vector<Problem> problems;
    for (const std::string& line : read_lines(path)) {
        if (problems.size() == n) {
            break;
        }
        const auto json = nlohmann::json::parse(line, nullptr, false);
        const auto has = [&](const char* key) { return json.contains(key) && json[key].is_string(); };
        if (!json.is_object() || !has("question") || !has("answer")) {
            throw Error(
                fmt::format("{}, line {}: not an object with \"question\" and \"answer\"", path, problems.size() + 1));
        }
        problems.push_back({json["question"].get<std::string>(), json["answer"].get<std::string>()});
    }
    return problems;
}

std::string_view before_stop(std::string_view text, const std::vector<std::string>& stops) {
    for (const std::string& stop : stops) {
        text = text.substr(0, text.find(stop));
    }
    return text;
}

std::optional<std::string> strict_number(std::string_view answer) {
    static const std::regex kPattern(R"(#### (-?[0-9.,]+))");
    std::cmatch match;
    if (!std::regex_search(answer.data(), answer.data() + answer.size(), match, kPattern)) {
        return std::nullopt;
    }
    return clean_number(match[1].str());
}

std::optional<std::string> flexible_number(std::string_view answer) {
    static const std::regex kPattern(R"((-?[$0-9.,]{2,})|(-?[0-9]+))");
    const auto number = last_match(answer, kPattern);
    return number ? std::optional(clean_number(*number)) : std::nullopt;
}

double f1_score(std::string_view prediction, std::string_view truth) {
    const auto a = words_of(prediction, true);
    const auto b = words_of(truth, true);
    std::map<std::string, size_t> left;
    for (const std::string& word : b) {
        ++left[word];
    }
    double common = 0;
    for (const std::string& word : a) {
        if (left[word] > 0) {
            --left[word];
            ++common;
        }
    }
    return harmonic(common, a.size(), b.size());
}

double rouge_l(std::string_view prediction, std::string_view truth) {
    const auto a = words_of(prediction, false);
    const auto b = words_of(truth, false);
    return harmonic(static_cast<double>(longest_common_subsequence(a, b)), a.size(), b.size());
}

double edit_similarity(std::string_view prediction, std::string_view truth) {
    while (!prediction.empty()) {
        const std::string_view line = prediction.substr(0, prediction.find('\n'));
        const bool skipped = line.find_first_not_of(" \t\r") == std::string_view::npos ||
                             line.find("```") != std::string_view::npos || line.find('#') != std::string_view::npos ||
                             line.find("//") != std::string_view::npos;
        if (!skipped) {
            const size_t longer = std::max(line.size(), truth.size());
            return 1 - static_cast<double>(edit_distance(line, truth)) / static_cast<double>(longer);
        }
        prediction.remove_prefix(std::min(prediction.size(), line.size() + 1));
    }
    return 0;
}

double classification_score(std::string_view prediction, std::string_view truth,
                            const std::vector<std::string>& classes) {
    std::vector<std::string> named;
    for (const std::string& name : classes) {
        if (prediction.find(name) != std::string_view::npos) {
            named.push_back(name);
        }
    }
    std::erase_if(named, [&](const std::string& name) { return name != truth && truth.find(name) != truth.npos; });
    const bool right = std::ranges::find(named, truth) != named.end();
    return right ? 1.0 / static_cast<double>(named.size()) : 0.0;
}

double number_score(std::string_view prediction, std::string_view truth) {
    static const std::regex kNumber("[0-9]+");
    const std::string right = last_match(truth, kNumber).value_or("");
    size_t n = 0;
    size_t n_right = 0;
    for (std::cregex_iterator it(prediction.data(), prediction.data() + prediction.size(), kNumber), end; it != end;
         ++it) {
        ++n;
        n_right += it->str() == right ? 1 : 0;
    }
    return n == 0 ? 0.0 : static_cast<double>(n_right) / static_cast<double>(n);
}

double contains_score(std::string_view prediction, std::string_view truth) {
    return lower(prediction).find(lower(truth)) == std::string::npos ? 0.0 : 1.0;
}

std::optional<char> chosen_letter(std::string_view answer, size_t n_choices) {
    static const std::regex kPattern(R"(answer is:?\s*\(?([A-Z])\b)", std::regex::icase);
    static const std::regex kAlone(R"(^\s*\(?([A-Z])\)?[.\s]*$)");
    std::optional<char> letter;
    for (std::cregex_iterator it(answer.data(), answer.data() + answer.size(), kPattern), end; it != end; ++it) {
        letter = (*it)[1].str().front();
    }
    std::cmatch match;
    if (!letter && std::regex_match(answer.data(), answer.data() + answer.size(), match, kAlone)) {
        letter = match[1].str().front();
    }
    if (letter && (*letter < 'A' || static_cast<size_t>(*letter - 'A') >= n_choices)) {
        return std::nullopt;
    }
    return letter;
}

}  // namespace kvcodec
