// Any bytes as an artifact: it is read, or refused with an Error.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "kvcodec/artifact/artifact.h"
#include "kvcodec/artifact/model_info.h"
#include "kvcodec/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const int file = ::memfd_create("fuzz", 0);
    static const std::string path = "/proc/self/fd/" + std::to_string(file);
    if (::ftruncate(file, 0) != 0 || ::pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) {
        std::abort();
    }
    try {
        kvcodec::read_artifact(path);
    } catch (const kvcodec::Error&) {
    }
    try {
        kvcodec::read_model_info(path);
    } catch (const kvcodec::Error&) {
    }
    return 0;
}
