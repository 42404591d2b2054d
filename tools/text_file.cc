#include "tools/text_file.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "kvcodec/error.h"

namespace kvcodec {

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file || text.str().empty()) {
        throw Error(fmt::format("{} cannot be read or is empty", path));
    }
    return std::move(text).str();
}

}  // namespace kvcodec
