#include "kvcodec/threads.h"

#include <barrier>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "hwy/cache_control.h"

namespace kvcodec {
namespace {

// Some tens of microseconds: longer than members of a team lag behind one another while each has a core of its own.
constexpr size_t kSpins = 2000;

class ParkedTeam final : public Team {
  public:
    explicit ParkedTeam(size_t size) : size_(size), barrier_(static_cast<std::ptrdiff_t>(size)) {
        for (size_t member = 1; member < size; ++member) {
            workers_.emplace_back([this, member] { serve(member); });
        }
    }

    ~ParkedTeam() override {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) {
            worker.join();
        }
    }

    size_t size() const override { return size_; }

    void run(const std::function<void(size_t)>& work) override {
        {
            const std::lock_guard lock(mutex_);
            work_ = &work;
            running_ = size_ - 1;
            ++round_;
        }
        wake_.notify_all();
        work(0);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

    void barrier() override { barrier_.arrive_and_wait(); }

  private:
    void serve(size_t member) {
        for (size_t seen = 0;;) {
            const std::function<void(size_t)>* work = nullptr;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
                if (stopping_) {
                    return;
                }
                seen = round_;
                work = work_;
            }
            (*work)(member);
            const std::lock_guard lock(mutex_);
            if (--running_ == 0) {
                done_.notify_one();
            }
        }
    }

    const size_t size_;
    std::barrier<> barrier_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    const std::function<void(size_t)>* work_ = nullptr;
    size_t running_ = 0;
    size_t round_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace

void BorrowedTeam::lead(size_t size, const std::function<void()>& main) {
    meet(size);  // nobody is still on the way out of the last piece of work
    size_ = size;
    std::exception_ptr error;
    try {
        main();
    } catch (...) {
        error = std::current_exception();
    }
    work_ = nullptr;
    meet(size);
    if (error != nullptr) {
        std::rethrow_exception(error);
    }
}

void BorrowedTeam::serve(size_t member, size_t size) {
    meet(size);
    for (;;) {
        meet(size);
        if (work_ == nullptr) {
            return;
        }
        (*work_)(member);
        meet(size);
    }
}

void BorrowedTeam::run(const std::function<void(size_t)>& work) {
    work_ = &work;
    meet(size_);
    [&]() noexcept { work(0); }();
    meet(size_);
}

// Spins, as whoever waits here has a core and the others come soon; sleeps where they do not.
void BorrowedTeam::meet(size_t size) {
    const uint32_t meeting = n_meetings_.load(std::memory_order_acquire);
    if (n_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
        n_arrived_.store(0, std::memory_order_relaxed);
        n_meetings_.store(meeting + 1, std::memory_order_release);
        n_meetings_.notify_all();
        return;
    }
    for (size_t spin = 0; spin < kSpins; ++spin) {
        if (n_meetings_.load(std::memory_order_acquire) != meeting) {
            return;
        }
        hwy::Pause();
    }
    n_meetings_.wait(meeting, std::memory_order_acquire);
}

std::unique_ptr<Team> make_parked_team(size_t size) {
    if (size <= 1) {
        return std::make_unique<SingleThread>();
    }
    return std::make_unique<ParkedTeam>(size);
}

}  // namespace kvcodec
