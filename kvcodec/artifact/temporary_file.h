// Files that are written as a whole or not at all.
#pragma once

#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>

namespace kvcodec {

class FileDescriptor {
  public:
    explicit FileDescriptor(int fd) : fd_(fd) {}
    ~FileDescriptor() { close(); }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;

    int get() const { return fd_; }
    /// False if the system reports an error of an earlier write.
    bool close() {
        const int fd = std::exchange(fd_, -1);
        return fd < 0 || ::close(fd) == 0;
    }

  private:
    int fd_;
};

/// A file beside `path` that takes its name once it is complete and on the disk, and is removed if it never is.
class TemporaryFile {
  public:
    /// Throws Error if the folder cannot be written.
    explicit TemporaryFile(const std::string& path) : target_(path), fd_(open_beside(path, name_)) {}
    ~TemporaryFile();
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;

    /// Throws Error if the disk is full.
    void write(std::string_view bytes);
    /// Throws Error if the file could not be completed.
    void publish();

  private:
    [[noreturn]] void fail() const;
    static int open_beside(const std::string& path, std::string& name);

    std::string target_;
    std::string name_;
    FileDescriptor fd_;
};

}  // namespace kvcodec
