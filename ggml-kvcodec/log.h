// What the plug-in says: warnings through the host's log, summaries on standard error.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string>

#include "ggml.h"

namespace kvcodec::host {

void log_line(ggml_log_level level, const std::string& line);

/// A line that is shown whatever the host's verbosity, because most programs hide their libraries' information lines.
template <class... Args>
void log_summary(fmt::format_string<Args...> format, Args&&... args) {
    std::fputs(("kvcodec: " + fmt::format(format, std::forward<Args>(args)...) + "\n").c_str(), stderr);
}

template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
    log_line(GGML_LOG_LEVEL_WARN, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace kvcodec::host
