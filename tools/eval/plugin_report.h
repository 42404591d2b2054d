// What the plug-in reports of the caches of one context.
#pragma once

#include <nlohmann/json.hpp>

namespace kvcodec {

using Json = nlohmann::json;

/// One report (ggml-kvcodec/report.h) of several: a model with sliding windows keeps two caches, each with a part of
/// the layers. Bytes, pairs and times add up; of "dense_tokens" and the cells of a layer the most counts; lists are
/// joined; anything else is as the first one says. Null for an empty array.
Json joined_report(const Json& reports);

/// Bytes of a cache with so many tokens of one sequence: codes, what stays dense, tables.
double total_bytes(const Json& report, double tokens);

}  // namespace kvcodec
