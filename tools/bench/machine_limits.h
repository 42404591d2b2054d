// What this machine can do at most: the two lines of a roofline.
#pragma once

#include <cstddef>

namespace kvcodec {

struct MachineLimits {
    double read_bytes = 0;     ///< a second, from memory
    double multiply_adds = 0;  ///< a second, of single precision
};

/// Measures both with n_threads threads, in a second or two.
MachineLimits measure_limits(size_t n_threads);

}  // namespace kvcodec
