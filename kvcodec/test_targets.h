// Instruction sets that tests go through.
#pragma once

#include <hwy/targets.h>

#include <cstdint>
#include <vector>

namespace kvcodec {

/// What to pass to SetSupportedTargetsForTest(): each instruction set of this machine, whatever was passed before, and
/// AVX-512 with its newer byte instructions, which have no target of their own. Codecs look at them when they are made.
inline std::vector<int64_t> test_targets() {
    hwy::SetSupportedTargetsForTest(0);
    std::vector<int64_t> all = hwy::SupportedAndGeneratedTargets();
#if HWY_ARCH_X86
    if ((hwy::SupportedTargets() & HWY_AVX3_DL) != 0) {
        all.push_back(HWY_AVX3_DL | HWY_AVX3);
    }
#endif
    return all;
}

}  // namespace kvcodec
