#include "kvcodec/artifact/temporary_file.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "kvcodec/error.h"

namespace kvcodec {

TemporaryFile::~TemporaryFile() {
    if (!name_.empty()) {
        ::unlink(name_.c_str());
    }
}

void TemporaryFile::write(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
        if (n < 0 && errno != EINTR) {
            fail();
        }
        bytes.remove_prefix(n > 0 ? static_cast<size_t>(n) : 0);
    }
}

void TemporaryFile::publish() {
    if (::fsync(fd_.get()) != 0 || !fd_.close() || ::rename(name_.c_str(), target_.c_str()) != 0) {
        fail();
    }
    name_.clear();
}

void TemporaryFile::fail() const {
    throw Error(fmt::format("{}: cannot be written: {}; free some space or choose another place", target_,
                            std::strerror(errno)));
}

int TemporaryFile::open_beside(const std::string& path, std::string& name) {
    for (int i = 0;; ++i) {
        std::string candidate = fmt::format("{}.partial-{}-{}", path, ::getpid(), i);
        const int fd = ::open(candidate.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            name = std::move(candidate);
            return fd;
        }
        if (errno != EEXIST) {
            throw Error(fmt::format("{}: cannot be created: {}; choose a folder that exists and can be written", path,
                                    std::strerror(errno)));
        }
    }
}

}  // namespace kvcodec
