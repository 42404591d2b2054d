#include "kvcodec/target.h"

#include <fmt/format.h>

#include <hwy/targets.h>
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>

#include "kvcodec/error.h"

namespace kvcodec {

namespace {

struct Target {
    int64_t bit;  // of Highway; better ones are lower
    const char* name;
};
constexpr Target kTargets[] = {{HWY_AVX3_DL, "AVX512_VNNI"}, {HWY_AVX3, "AVX512"}, {HWY_AVX2, "AVX2"},
                               {HWY_SSE4, "SSE4"},           {HWY_SSSE3, "SSSE3"}, {HWY_NEON, "NEON"},
                               {HWY_EMU128, "EMU128"}};

// AVX512_VNNI is no target of its own, codecs ask for it, so what the kernels are built for does not name it.
std::vector<Target> targets_of_machine() {
    std::vector<Target> found;
    for (const Target& target : kTargets) {
        if ((hwy::SupportedTargets() & target.bit) != 0 && (target.bit & (HWY_TARGETS | HWY_AVX3_DL)) != 0) {
            found.push_back(target);
        }
    }
    return found;
}

}  // namespace

std::vector<std::string> target_names() {
    std::vector<std::string> names;
    for (const Target& target : targets_of_machine()) {
        names.emplace_back(target.name);
    }
    return names;
}

std::string target_name() {
    const std::vector<std::string> names = target_names();
    return names.empty() ? "EMU128" : names.front();
}

void force_target(std::string_view name) {
    hwy::DisableTargets(0);
    if (name.empty()) {
        return;
    }
    std::string wanted(name);
    std::ranges::transform(wanted, wanted.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    const std::vector<Target> targets = targets_of_machine();
    const auto target = std::ranges::find(targets, wanted, &Target::name);
    if (target == targets.end()) {
        std::string known;
        for (const Target& other : targets) {
            known += fmt::format("{}{}", known.empty() ? "" : ", ", other.name);
        }
        throw Error(fmt::format("{}={}: this machine has {}", kTargetVariable, name, known));
    }
    hwy::DisableTargets(target->bit - 1);
}

void force_target_of_environment() {
    if (const char* name = std::getenv(kTargetVariable); name != nullptr) {
        force_target(name);
    }
}

}  // namespace kvcodec
