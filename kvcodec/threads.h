// A team of threads that works on one piece of attention or encoding at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace kvcodec {

/// Runs a function on every member of a team. In the plug-in that is a BorrowedTeam of the host's threads; programs
/// that have no threads at hand take make_parked_team().
class Team {
  public:
    virtual ~Team() = default;
    virtual size_t size() const = 0;
    /// Calls work(member) for member = 0 .. size()-1, concurrently, and returns when all have finished. An exception
    /// of `work` ends the program.
    virtual void run(const std::function<void(size_t member)>& work) = 0;
    /// Waits until every member of the team has come here. Only inside run().
    virtual void barrier() = 0;
};

/// A team of one: the calling thread.
class SingleThread final : public Team {
  public:
    size_t size() const override { return 1; }
    void run(const std::function<void(size_t member)>& work) override { work(0); }
    void barrier() override {}
};

/// Threads that somebody else has started and brings here together, for one piece of work: one of them calls lead(),
/// each of the others serve(), and all come back when the leader's function has returned.
class BorrowedTeam final : public Team {
  public:
    /// Member 0. Calls `main`, in which run() works on all `size` threads. An exception of `main` outside of run() is
    /// thrown on when the others have been let go.
    void lead(size_t size, const std::function<void()>& main);
    /// Members 1 .. size-1.
    void serve(size_t member, size_t size);

    size_t size() const override { return size_; }
    void run(const std::function<void(size_t member)>& work) override;
    void barrier() override { meet(size_); }

  private:
    void meet(size_t size);

    size_t size_ = 1;
    const std::function<void(size_t)>* work_ = nullptr;  // null: the leader has finished
    std::atomic<size_t> n_arrived_ = 0;
    std::atomic<uint32_t> n_meetings_ = 0;
};

/// size-1 worker threads that sleep between runs; the caller is member 0.
std::unique_ptr<Team> make_parked_team(size_t size);

}  // namespace kvcodec
