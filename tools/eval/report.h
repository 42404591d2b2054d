// Results for people: a page, the main curve, and tables on the terminal.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace kvcodec {

/// A self-contained HTML page of everything in a result document (results.h): tables, charts, and a sentence for each
/// that says what it shows.
std::string html_report(const nlohmann::json& document);
/// KLD against rate of the largest context with the most caches, as SVG; against the layer, where each cache compresses
/// one alone. Empty if there is no kld result.
std::string kld_curve(const nlohmann::json& document);
/// Tables in Markdown, one for each suite and setting.
std::string markdown_report(const nlohmann::json& document);

}  // namespace kvcodec
