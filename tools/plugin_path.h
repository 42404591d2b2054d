// Where the plug-in is.
#pragma once

#include <string>

namespace kvcodec {

/// `chosen` if not empty, else KVCODEC_PLUGIN, else the file beside this program, as installed or in the build tree.
/// Throws Error if there is none.
std::string find_plugin(const std::string& chosen);

inline constexpr const char* kPluginName = "libggml-kvcodec.so";

}  // namespace kvcodec
