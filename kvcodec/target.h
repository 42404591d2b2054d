// Which instruction set the kernels use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvcodec {

/// The environment variable that names one.
inline constexpr const char* kTargetVariable = "KVCODEC_TARGET";

/// Whether AVX-512 has its newer instructions on bytes and shorts (VNNI, VBMI, VBMI2), which are no target of Highway's
/// own here. Codecs ask when they are made: it takes microseconds.
bool has_avx512_vnni();
/// What kernels run on: the best that this machine has, unless force_target() said otherwise.
std::string target_name();
/// Those of this machine that kernels are built for, best first.
std::vector<std::string> target_names();
/// Uses this one (in any case), and of older ones what it includes, from now on: for measurements and to rule an
/// instruction set out. Codecs that were made before keep what they chose. Empty: the best. Throws Error naming those
/// of this machine, which is then back at the best.
void force_target(std::string_view name);
/// force_target() with what KVCODEC_TARGET says, if it is set.
void force_target_of_environment();

}  // namespace kvcodec
