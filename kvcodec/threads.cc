#include "kvcodec/threads.h"

#include <barrier>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace kvcodec {
namespace {

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

std::unique_ptr<Team> make_parked_team(size_t size) {
    if (size <= 1) {
        return std::make_unique<SingleThread>();
    }
    return std::make_unique<ParkedTeam>(size);
}

}  // namespace kvcodec
