#include "tools/bench/machine_limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "kvcodec/error.h"
#include "kvcodec/threads.h"
#include "tools/bench/timing.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/bench/machine_limits.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvcodec::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Reads all of it; the result only keeps the compiler from leaving that out.
uint64_t read_all(const uint64_t* data, size_t n) {
    const hn::ScalableTag<uint64_t> d;
    const size_t lanes = hn::Lanes(d);
    auto a = hn::Zero(d), b = a, c = a, e = a;
    for (size_t i = 0; i + 4 * lanes <= n; i += 4 * lanes) {
        a = hn::Xor(a, hn::Load(d, data + i));
        b = hn::Xor(b, hn::Load(d, data + i + lanes));
        c = hn::Xor(c, hn::Load(d, data + i + 2 * lanes));
        e = hn::Xor(e, hn::Load(d, data + i + 3 * lanes));
    }
    return hn::GetLane(hn::Xor(hn::Xor(a, b), hn::Xor(c, e)));
}

/// Multiply-adds in registers alone, in enough chains to hide their latency; returns how many. The chains start from
/// values that the compiler cannot know: of equal chains it would keep one.
size_t multiply_add(size_t rounds, std::array<float, 10>& chains) {
    const hn::ScalableTag<float> d;
    const auto factor = hn::Set(d, 0.999F), term = hn::Set(d, 0.001F);
    auto a0 = hn::Set(d, chains[0]), a1 = hn::Set(d, chains[1]), a2 = hn::Set(d, chains[2]);
    auto a3 = hn::Set(d, chains[3]), a4 = hn::Set(d, chains[4]), a5 = hn::Set(d, chains[5]);
    auto a6 = hn::Set(d, chains[6]), a7 = hn::Set(d, chains[7]), a8 = hn::Set(d, chains[8]);
    auto a9 = hn::Set(d, chains[9]);
    for (size_t i = 0; i < rounds; ++i) {
        a0 = hn::MulAdd(a0, factor, term);
        a1 = hn::MulAdd(a1, factor, term);
        a2 = hn::MulAdd(a2, factor, term);
        a3 = hn::MulAdd(a3, factor, term);
        a4 = hn::MulAdd(a4, factor, term);
        a5 = hn::MulAdd(a5, factor, term);
        a6 = hn::MulAdd(a6, factor, term);
        a7 = hn::MulAdd(a7, factor, term);
        a8 = hn::MulAdd(a8, factor, term);
        a9 = hn::MulAdd(a9, factor, term);
    }
    const auto sum = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)));
    chains[0] = hn::GetLane(hn::Add(sum, hn::Add(a8, a9)));
    return chains.size() * rounds * hn::Lanes(d);
}

}  // namespace kvcodec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcodec {

HWY_EXPORT(read_all);
HWY_EXPORT(multiply_add);

namespace {

/// Memory that no cache holds, in huge pages where the system has them.
class LargeBuffer {
  public:
    static constexpr size_t kBytes = size_t{512} << 20;

    LargeBuffer() : data_(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
        if (data_ == MAP_FAILED) {
            throw Error("512 MiB to measure the memory with cannot be had");
        }
        ::madvise(data_, kBytes, MADV_HUGEPAGE);
        std::fill_n(static_cast<uint64_t*>(data_), kBytes / sizeof(uint64_t), uint64_t{1});
    }
    ~LargeBuffer() { ::munmap(data_, kBytes); }
    LargeBuffer(const LargeBuffer&) = delete;
    LargeBuffer& operator=(const LargeBuffer&) = delete;

    const uint64_t* words() const { return static_cast<const uint64_t*>(data_); }

  private:
    void* data_;
};

}  // namespace

MachineLimits measure_limits(size_t n_threads) {
    constexpr int kRepeats = 5;
    constexpr size_t kRounds = size_t{1} << 24;
    const auto team = make_parked_team(n_threads);
    std::vector<uint64_t> seen(n_threads);
    const LargeBuffer buffer;
    const size_t part = LargeBuffer::kBytes / sizeof(uint64_t) / n_threads / 64 * 64;
    MachineLimits limits;
    std::vector<std::array<float, 10>> chains(n_threads);
    for (std::array<float, 10>& values : chains) {
        std::iota(values.begin(), values.end(), 1.0F);
    }
    std::vector<size_t> done(n_threads);
    for (int i = 0; i < kRepeats; ++i) {  // the best of them: others may use the machine too
        const double reading = seconds_of([&] {
            team->run([&](size_t member) {
                seen[member] += HWY_DYNAMIC_DISPATCH(read_all)(buffer.words() + member * part, part);
            });
        });
        limits.read_bytes =
            std::max(limits.read_bytes, static_cast<double>(n_threads * part * sizeof(uint64_t)) / reading);
        const double computing = seconds_of([&] {
            team->run(
                [&](size_t member) { done[member] = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, chains[member]); });
        });
        limits.multiply_adds = std::max(limits.multiply_adds, static_cast<double>(n_threads * done[0]) / computing);
    }
    return limits;
}

}  // namespace kvcodec
#endif
