#include "tools/eval/results.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kvcodec/error.h"

namespace kvcodec {

namespace fs = std::filesystem;

void write_whole_file(const std::string& path, const std::string& text) {
    const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
    errno = 0;
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    std::error_code error;
    if (file) {
        fs::rename(temporary, path, error);
    }
    if (!file || error) {
        const std::string reason = error ? error.message() : std::strerror(errno == 0 ? EIO : errno);
        fs::remove(temporary, error);
        throw Error(fmt::format("{} cannot be written: {}; earlier results in it are unchanged", path, reason));
    }
}

ResultStore::ResultStore(std::string path, Json setting)
    : path_(std::move(path)), document_({{"setting", setting}, {"results", Json::array()}}) {
    if (path_.empty() || !fs::exists(path_)) {
        return;
    }
    std::ifstream file(path_, std::ios::binary);
    Json known = Json::parse(file, nullptr, false);
    if (known.is_discarded() || !known.is_object() || !known.contains("setting") || !known.contains("results") ||
        !known["results"].is_array()) {
        throw Error(fmt::format("{} is not a file of results; name another one with --json", path_));
    }
    if (known["setting"].value("fingerprint", "") != setting.value("fingerprint", "")) {
        throw Error(fmt::format("{} holds results of another model ({}); name another file with --json", path_,
                                known["setting"].value("model", "unknown")));
    }
    document_["results"] = std::move(known["results"]);
}

std::optional<Json> ResultStore::find(const std::string& suite, const std::string& cache, const Json& settings) const {
    for (const Json& entry : document_["results"]) {
        if (entry.value("suite", "") == suite && entry.value("cache", "") == cache && entry.contains("result") &&
            entry.value("settings", Json()) == settings) {
            return entry["result"];
        }
    }
    return std::nullopt;
}

void ResultStore::put(const std::string& suite, const std::string& cache, const Json& settings, Json result) {
    Json entry = {{"suite", suite}, {"cache", cache}, {"settings", settings}, {"result", std::move(result)}};
    for (const char* key : {"date", "cpu", "kvcodec"}) {  // a later run may add to the file elsewhere
        entry[key] = document_["setting"].value(key, "");
    }
    Json& results = document_["results"];
    results.erase(std::remove_if(results.begin(), results.end(),
                                 [&](const Json& other) {
                                     return other.value("suite", "") == suite && other.value("cache", "") == cache &&
                                            other.value("settings", Json()) == settings;
                                 }),
                  results.end());
    results.push_back(std::move(entry));
    if (!path_.empty()) {
        save();
    }
}

void ResultStore::save() const {
    write_whole_file(path_, document_.dump(1) + "\n");
}

}  // namespace kvcodec
