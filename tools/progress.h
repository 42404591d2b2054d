// What a long command shows on stderr, and how Ctrl-C ends it in order.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>

namespace kvcodec {

/// "48 s" or "2 min 05 s".
std::string duration(double seconds);

/// Share done and time left on stderr: one line that rewrites itself on a terminal, else a line for every tenth.
class Progress {
  public:
    explicit Progress(std::string label);

    /// From any thread. `note` is shown behind the share.
    void update(size_t done, size_t total, const std::string& note = "");
    void finish(const std::string& summary) const;
    double seconds() const;

  private:
    static constexpr double kRefreshSeconds = 0.2;

    std::mutex mutex_;
    const std::string label_;
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    const bool terminal_;
    double shown_at_ = 0.0;
    int shown_tenth_ = 0;
};

/// While one lives, the first Ctrl-C sets interrupted() and the second one ends the program.
class InterruptGuard {
  public:
    InterruptGuard();
    ~InterruptGuard();
    InterruptGuard(const InterruptGuard&) = delete;
    InterruptGuard& operator=(const InterruptGuard&) = delete;

    static const std::atomic<bool>& interrupted();

  private:
    void (*previous_)(int);
};

}  // namespace kvcodec
