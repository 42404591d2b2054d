#include "tools/eval/evaluation.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <cstdlib>

#include "kvcodec/error.h"
#include "kvcodec/target.h"
#include "tools/progress.h"
#include "tools/text_file.h"

namespace kvcodec {

std::string file_checksum(const std::string& path) {
    const std::string bytes = read_text(path);
    return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

CacheSpec reference_cache() {
    CacheSpec spec;
    spec.name = "f16";
    return spec;
}

void check_interrupted() {
    if (InterruptGuard::interrupted()) {
        throw Error("interrupted; finished results are kept, the same command goes on from there");
    }
}

Json settings_of(const CacheSpec& spec, Json settings) {
    if (spec.plugin) {
        settings["options"] = spec.options;
        settings["artifact"] = spec.artifact.empty() ? "" : file_checksum(spec.artifact);
        if (const char* target = std::getenv(kTargetVariable); target != nullptr && *target != '\0') {
            settings["target"] = target_name();
        }
    }
    return settings;
}

std::vector<std::vector<CacheSpec>> Evaluation::pending(const std::string& suite, const Json& settings,
                                                        bool plugin_only) const {
    std::vector<std::vector<CacheSpec>> groups;
    for (const CacheSpec& spec : caches) {
        if ((plugin_only && !spec.plugin) || results.find(suite, spec.name, settings_of(spec, settings))) {
            continue;
        }
        if (groups.empty() || groups.back().size() == options.together) {
            groups.emplace_back();
        }
        groups.back().push_back(spec);
    }
    return groups;
}

}  // namespace kvcodec
