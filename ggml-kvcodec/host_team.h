// The threads that attention runs on inside a host program.
#pragma once

#include <memory>

#include "kvcodec/threads.h"

namespace kvcodec::host {

/// The host's OpenMP team: parallel regions entered from its compute thread reuse the threads of its own CPU backend,
/// so that no second set spins beside it. Where another OpenMP runtime is in the process (pip wheels bundle one), that
/// backend's threads are not ours to use: then parked workers, which never spin.
std::unique_ptr<Team> make_host_team(size_t size);

}  // namespace kvcodec::host
