#include "tools/plugin_path.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "kvcodec/error.h"

namespace kvcodec {

namespace fs = std::filesystem;

std::string find_plugin(const std::string& chosen) {
    std::vector<fs::path> candidates;
    const char* variable = std::getenv("KVCODEC_PLUGIN");
    if (!chosen.empty()) {
        candidates = {chosen};
    } else if (variable != nullptr && *variable != '\0') {
        candidates = {variable};
    } else {
        std::error_code error;
        const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
        // Beside the command, as installed, in the build tree.
        candidates = {folder / kPluginName, folder / "../lib" / kPluginName, folder / "../ggml-kvcodec" / kPluginName};
    }
    for (const fs::path& candidate : candidates) {
        std::error_code error;
        if (fs::is_regular_file(candidate, error)) {
            return fs::absolute(candidate).lexically_normal().native();
        }
    }
    throw Error(fmt::format("the plug-in is not at {}; name its file with --plugin or KVCODEC_PLUGIN",
                            candidates.front().lexically_normal().native()));
}

}  // namespace kvcodec
