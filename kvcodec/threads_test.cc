#include "kvcodec/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace kvcodec {
namespace {

class ParkedTeamTest : public testing::TestWithParam<size_t> {
  protected:
    const size_t size_ = GetParam();
    const std::unique_ptr<Team> team_ = make_parked_team(size_);
};

TEST_P(ParkedTeamTest, RunsEveryMemberOnceARound) {
    ASSERT_EQ(team_->size(), size_);
    std::vector<size_t> calls(size_);  // not atomic: run() must order rounds
    for (size_t round = 1; round <= 2000; ++round) {
        team_->run([&](size_t member) { ++calls.at(member); });
        ASSERT_EQ(calls, std::vector<size_t>(size_, round));
    }
}

TEST_P(ParkedTeamTest, CallerIsMemberZero) {
    std::vector<std::thread::id> ids(size_);
    team_->run([&](size_t member) { ids[member] = std::this_thread::get_id(); });
    EXPECT_EQ(ids[0], std::this_thread::get_id());
    for (size_t member = 1; member < size_; ++member) {
        EXPECT_NE(ids[member], ids[member - 1]);
    }
}

TEST_P(ParkedTeamTest, BarrierSeparatesPhases) {
    constexpr size_t kPhases = 4;
    std::vector<size_t> phase_of(size_, 0);
    std::atomic<size_t> n_behind = 0;
    for (size_t round = 0; round < 300; ++round) {
        team_->run([&](size_t member) {
            for (size_t phase = 1; phase <= kPhases; ++phase) {
                phase_of[member] = round * kPhases + phase;
                team_->barrier();
                for (const size_t other : phase_of) {
                    n_behind += other != round * kPhases + phase ? 1 : 0;
                }
                team_->barrier();
            }
        });
    }
    EXPECT_EQ(n_behind, 0U);
}

TEST_P(ParkedTeamTest, SleepsBetweenRuns) {
    team_->run([](size_t) {});
    const auto cpu_seconds = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_LT(cpu_seconds() - before, 0.05);
}

TEST_P(ParkedTeamTest, MayNeverRun) {
    for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(make_parked_team(size_)->size(), size_);
    }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ParkedTeamTest, testing::Values(1, 2, 3, 5),
                         [](const auto& test) { return "Of" + std::to_string(test.param); });

TEST(ParkedTeam, HasAtLeastOneMember) {
    EXPECT_EQ(make_parked_team(0)->size(), 1U);
}

class BorrowedTeamTest : public testing::TestWithParam<size_t> {
  protected:
    // As a host does: all its threads come to the team, for every piece of work.
    void with_threads(size_t n_pieces, const std::function<void()>& main) {
        std::vector<std::thread> others;
        for (size_t member = 1; member < size_; ++member) {
            others.emplace_back([this, member, n_pieces] {
                for (size_t piece = 0; piece < n_pieces; ++piece) {
                    team_.serve(member, size_);
                }
            });
        }
        for (size_t piece = 0; piece < n_pieces; ++piece) {
            team_.lead(size_, main);
        }
        for (std::thread& other : others) {
            other.join();
        }
    }

    const size_t size_ = GetParam();
    BorrowedTeam team_;
};

TEST_P(BorrowedTeamTest, RunsEveryMemberOnceARound) {
    std::vector<size_t> calls(size_);  // not atomic: run() must order rounds
    size_t round = 0;
    with_threads(500, [&] {
        EXPECT_EQ(team_.size(), size_);
        for (size_t i = 0; i < 3; ++i) {
            team_.run([&](size_t member) { ++calls.at(member); });
            ASSERT_EQ(calls, std::vector<size_t>(size_, ++round));
        }
    });
    EXPECT_EQ(round, 1500U);
}

TEST_P(BorrowedTeamTest, BarrierSeparatesPhases) {
    constexpr size_t kPhases = 4;
    std::vector<size_t> phase_of(size_, 0);
    std::atomic<size_t> n_behind = 0;
    size_t round = 0;
    with_threads(300, [&] {
        team_.run([&](size_t member) {
            for (size_t phase = 1; phase <= kPhases; ++phase) {
                phase_of[member] = round * kPhases + phase;
                team_.barrier();
                for (const size_t other : phase_of) {
                    n_behind += other != round * kPhases + phase ? 1 : 0;
                }
                team_.barrier();
            }
        });
        ++round;
    });
    EXPECT_EQ(n_behind, 0U);
}

TEST_P(BorrowedTeamTest, LeaderMayHaveNoWorkForTheOthers) {
    size_t n = 0;
    with_threads(200, [&] { ++n; });
    EXPECT_EQ(n, 200U);
}

TEST_P(BorrowedTeamTest, WaitsForALateLeaderAsleep) {
    const auto cpu_seconds = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
    const double before = cpu_seconds();
    with_threads(1, [] { std::this_thread::sleep_for(std::chrono::milliseconds(100)); });
    EXPECT_LT(cpu_seconds() - before, 0.05);
}

TEST_P(BorrowedTeamTest, LetsTheOthersGoWhenTheLeaderFails) {
    std::vector<std::thread> others;
    for (size_t member = 1; member < size_; ++member) {
        others.emplace_back([this, member] { team_.serve(member, size_); });
    }
    EXPECT_THROW(team_.lead(size_, [] { throw std::runtime_error("expected"); }), std::runtime_error);
    for (std::thread& other : others) {
        other.join();
    }
}

INSTANTIATE_TEST_SUITE_P(Sizes, BorrowedTeamTest, testing::Values(1, 2, 3, 5),
                         [](const auto& test) { return "Of" + std::to_string(test.param); });

}  // namespace
}  // namespace kvcodec
