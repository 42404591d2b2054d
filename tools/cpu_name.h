// What the processor calls itself.
#pragma once

#include <string>

namespace kvcodec {

std::string cpu_name();

}  // namespace kvcodec
