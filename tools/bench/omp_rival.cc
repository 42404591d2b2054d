#include "tools/bench/omp_rival.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <vector>

#include "kvcodec/codec/dictionary/omp.h"
#include "kvcodec/error.h"
#include "tools/bench/timing.h"

namespace kvcodec {

namespace fs = std::filesystem;

namespace {

constexpr int kRepeats = 3;  // the fastest counts, for both

// SPAMS wants columns, so rows of C order are handed over transposed. Exit code 3: there is no SPAMS.
constexpr const char* kProgram = R"(
import sys, time
try:
    import numpy as np, spams
except ImportError:
    sys.exit(3)
folder, dim, sparsity, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def columns(name):
    return np.asfortranarray(np.fromfile(folder + "/" + name, dtype=np.float32).reshape(-1, dim).T)
atoms, x = columns("atoms"), columns("x")
best = float("inf")
for _ in range(repeats):
    start = time.perf_counter()
    codes = spams.omp(x, atoms, L=sparsity, eps=0.0, numThreads=1)
    best = min(best, time.perf_counter() - start)
miss = x - atoms @ codes.toarray()
print(best / x.shape[1], float((miss.astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum()))
)";

class ScratchFolder {
  public:
    ScratchFolder() : path_((fs::temp_directory_path() / "kvcodec-omp-XXXXXX").native()) {
        if (::mkdtemp(path_.data()) == nullptr) {
            throw Error(fmt::format("no folder can be made in {}", fs::temp_directory_path().native()));
        }
    }
    ~ScratchFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;

    void write(const char* name, const void* data, size_t size) const {
        std::ofstream file(path_ + "/" + name, std::ios::binary);
        file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
        if (!file.flush()) {
            throw Error(fmt::format("{}/{} cannot be written", path_, name));
        }
    }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

std::string quoted(const std::string& word) {
    std::string text = "'";
    for (const char c : word) {
        text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    }
    return text + "'";
}

}  // namespace

std::optional<OmpRun> run_spams(const std::string& python, std::span<const float> atoms, std::span<const float> x,
                                size_t dim, size_t sparsity) {
    const ScratchFolder folder;
    folder.write("atoms", atoms.data(), atoms.size_bytes());
    folder.write("x", x.data(), x.size_bytes());
    folder.write("run.py", kProgram, std::char_traits<char>::length(kProgram));
    const std::string command =
        fmt::format("OMP_NUM_THREADS=1 {} {} {} {} {} {} 2> {}", quoted(python), quoted(folder.path() + "/run.py"),
                    quoted(folder.path()), dim, sparsity, kRepeats, quoted(folder.path() + "/log"));
    FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) {
        throw Error(fmt::format("{} cannot be started", python));
    }
    std::array<char, 256> line{};
    const bool printed = std::fgets(line.data(), line.size(), pipe) != nullptr;
    const int status = ::pclose(pipe);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == 3 || code == 126 || code == 127) {
        return std::nullopt;
    }
    OmpRun run;
    if (code != 0 || !printed || std::sscanf(line.data(), "%lf %lf", &run.seconds, &run.loss) != 2) {
        throw Error(fmt::format("SPAMS failed in {} (exit code {})", python, code));
    }
    return run;
}

OmpRun run_own_omp(std::span<const float> atoms, std::span<const float> x, size_t dim, size_t sparsity) {
    const size_t n = x.size() / dim;
    std::vector<uint16_t> index(n * sparsity);
    std::vector<float> coefficient(n * sparsity), miss(n);
    std::vector<uint8_t> count(n);
    OmpRun run;
    for (int i = 0; i < kRepeats; ++i) {
        const double seconds = seconds_of([&] {
            omp_encode(atoms.data(), atoms.size() / dim, dim, x.data(), n, {sparsity, 0.0F}, index.data(),
                       coefficient.data(), count.data(), miss.data());
        });
        run.seconds = i == 0 ? seconds : std::min(run.seconds, seconds);
    }
    run.seconds /= static_cast<double>(n);
    run.loss = std::accumulate(miss.begin(), miss.end(), 0.0) / std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
    return run;
}

}  // namespace kvcodec
