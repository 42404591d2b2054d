#include "tools/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <utility>

namespace kvcodec {

namespace {

constexpr int kInterrupted = 130;

std::atomic<bool> interrupt_requested = false;
static_assert(std::atomic<bool>::is_always_lock_free);

void on_interrupt(int) {
    if (interrupt_requested.exchange(true)) {
        _exit(kInterrupted);
    }
}

}  // namespace

std::string duration(double seconds) {
    const auto s = static_cast<int64_t>(seconds + 0.5);
    return s < 60 ? fmt::format("{} s", s) : fmt::format("{} min {:02} s", s / 60, s % 60);
}

Progress::Progress(std::string label) : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) != 0) {}

double Progress::seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::update(size_t done, size_t total, const std::string& note) {
    const std::lock_guard lock(mutex_);
    const double share = static_cast<double>(done) / static_cast<double>(std::max<size_t>(total, 1));
    const double elapsed = seconds();
    const std::string line = fmt::format("{}: {:.0f} %{}{}, {} left", label_, 100.0 * share, note.empty() ? "" : ", ",
                                         note, duration(share > 0.0 ? elapsed * (1.0 - share) / share : 0.0));
    if (terminal_) {
        if (elapsed - shown_at_ >= kRefreshSeconds || done == total) {
            fmt::print(stderr, "\r{}\033[K", line);
            shown_at_ = elapsed;
        }
    } else if (const auto tenth = static_cast<int>(10.0 * share); tenth > shown_tenth_) {
        fmt::print(stderr, "{}\n", line);
        shown_tenth_ = tenth;
    }
}

void Progress::finish(const std::string& summary) const {
    fmt::print(stderr, "{}{}: {}, {}{}\n", terminal_ ? "\r" : "", label_, summary, duration(seconds()),
               terminal_ ? "\033[K" : "");
}

InterruptGuard::InterruptGuard() : previous_(std::signal(SIGINT, &on_interrupt)) {}

InterruptGuard::~InterruptGuard() {
    std::signal(SIGINT, previous_);
}

const std::atomic<bool>& InterruptGuard::interrupted() {
    return interrupt_requested;
}

}  // namespace kvcodec
