// Whole text files.
#pragma once

#include <string>

namespace kvcodec {

/// Throws Error naming the file if it cannot be read or is empty.
std::string read_text(const std::string& path);

}  // namespace kvcodec
