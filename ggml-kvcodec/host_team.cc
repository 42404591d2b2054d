#include "ggml-kvcodec/host_team.h"

#include <link.h>
#include <omp.h>

#include <cstring>

namespace kvcodec::host {
namespace {

class OmpTeam final : public Team {
  public:
    explicit OmpTeam(size_t size) : size_(size) {}
    size_t size() const override { return size_; }
    void run(const std::function<void(size_t)>& work) override {
        if (parked_ == nullptr) {
            bool complete = true;
#pragma omp parallel num_threads(static_cast <int>(size_))
            if (static_cast<size_t>(omp_get_num_threads()) == size_) {
                work(static_cast<size_t>(omp_get_thread_num()));
            } else {
#pragma omp single
                complete = false;
            }
            if (complete) {
                return;
            }
            // A thread limit or an enclosing region gives fewer threads; work is divided by team size.
            parked_ = make_parked_team(size_);
        }
        parked_->run(work);
    }
    void barrier() override {
        if (parked_ != nullptr) {
            parked_->barrier();
            return;
        }
#pragma omp barrier
    }

  private:
    size_t size_;
    std::unique_ptr<Team> parked_;
};

// OpenMP runtimes loaded into this process, whatever their file is called.
int count_openmp_runtimes() {
    int count = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t /*size*/, void* data) {
            const char* slash = std::strrchr(info->dlpi_name, '/');
            const char* name = slash == nullptr ? info->dlpi_name : slash + 1;
            for (const char* runtime : {"libgomp", "libomp", "libiomp"}) {
                *static_cast<int*>(data) += std::strncmp(name, runtime, std::strlen(runtime)) == 0 ? 1 : 0;
            }
            return 0;
        },
        &count);
    return count;
}

}  // namespace

std::unique_ptr<Team> make_host_team(size_t size) {
    if (size <= 1 || count_openmp_runtimes() > 1) {
        return make_parked_team(size);
    }
    return std::make_unique<OmpTeam>(size);
}

}  // namespace kvcodec::host
