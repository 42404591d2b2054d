// How the library reports what it cannot do.
#pragma once

#include <stdexcept>

namespace kvcodec {

/// Thrown at the library's edge for bad input: the message names the thing and the remedy. Code on the attention path
/// never throws.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace kvcodec
