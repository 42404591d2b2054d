// The host's OpenMP threads as a Team.
#pragma once

#include <omp.h>

#include "kvcodec/threads.h"

namespace kvcodec::host {

/// Parallel regions entered from the host's compute thread reuse the team that the host's own CPU backend uses, so that
/// no second set of threads spins beside it.
class OmpTeam final : public Team {
  public:
    explicit OmpTeam(size_t size) : size_(size) {}
    size_t size() const override { return size_; }
    void run(const std::function<void(size_t)>& work) override {
        if (size_ == 1) {
            work(0);
            return;
        }
#pragma omp parallel num_threads(static_cast<int>(size_))
        work(static_cast<size_t>(omp_get_thread_num()));
    }
    void barrier() override {
        if (size_ > 1) {
#pragma omp barrier
        }
    }

  private:
    size_t size_;
};

}  // namespace kvcodec::host
