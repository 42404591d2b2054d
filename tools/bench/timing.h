// The clock of a benchmark.
#pragma once

#include <chrono>

namespace kvcodec {

template <typename Work>
double seconds_of(const Work& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace kvcodec
