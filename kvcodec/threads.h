// A team of threads that works on one piece of attention or encoding at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace kvcodec {

/// Runs a function on every member of a team. The plug-in supplies the host's OpenMP team; ParkedTeam below needs no
/// OpenMP and never spins, for processes in which another OpenMP runtime already owns the cores.
class Team {
  public:
    virtual ~Team() = default;
    virtual size_t size() const = 0;
    /// Calls work(member) for member = 0 .. size()-1, concurrently, and returns when all have finished.
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

/// size-1 worker threads that sleep between runs; the caller is member 0.
std::unique_ptr<Team> make_parked_team(size_t size);

}  // namespace kvcodec
