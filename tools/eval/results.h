// Finished results on disk: an evaluation that was interrupted goes on where it stopped.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace kvcodec {

using Json = nlohmann::json;

/// A JSON file {"setting": {...}, "results": [{"suite", "cache", "settings", "result", "date", "cpu", "kvcodec"},
/// ...]}. It is replaced as a whole after every result, so that a crash or a full disk loses at most the one being
/// written.
class ResultStore {
  public:
    /// path: may be empty (nothing is kept). Throws Error if the file is not a result file, or not of this model.
    ResultStore(std::string path, Json setting);

    /// The result of equal suite, cache and settings.
    std::optional<Json> find(const std::string& suite, const std::string& cache, const Json& settings) const;
    /// Takes the place of a result of equal suite, cache and settings. Throws Error if the file cannot be written; what
    /// was there before stays.
    void put(const std::string& suite, const std::string& cache, const Json& settings, Json result);

    const Json& document() const { return document_; }

  private:
    void save() const;

    std::string path_;
    Json document_;
};

/// Writes `text` to a temporary name and renames it. Throws Error; what was at `path` stays.
void write_whole_file(const std::string& path, const std::string& text);

}  // namespace kvcodec
