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
    std::string name;
};

// As users know them, where Highway calls them otherwise. HWY_AVX3_DL is no target that kernels are built for here:
// codecs ask for it themselves.
std::string name_of(int64_t bit) {
    return bit == HWY_AVX3_DL ? "AVX512_VNNI" : bit == HWY_AVX3 ? "AVX512" : hwy::TargetName(bit);
}

std::vector<Target> targets_of_machine() {
    std::vector<Target> found;
    int64_t left = hwy::SupportedTargets() & (HWY_TARGETS | HWY_AVX3_DL);
    while (left != 0) {
        const int64_t bit = left & -left;
        found.push_back({bit, name_of(bit)});
        left &= left - 1;
    }
    return found;
}

}  // namespace

bool has_avx512_vnni() {
#if HWY_ARCH_X86
    return (hwy::SupportedTargets() & HWY_AVX3_DL) != 0;
#else
    return false;
#endif
}

std::vector<std::string> target_names() {
    std::vector<std::string> names;
    for (const Target& target : targets_of_machine()) {
        names.push_back(target.name);
    }
    return names;
}

std::string target_name() {
    const std::vector<std::string> names = target_names();
    return names.front();
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
