#!/usr/bin/env bash
# Builds with warnings as errors; runs the unit tests under the sanitizers, those of threads under the thread sanitizer,
# then all tests. ctest's summary comes last.
set -euo pipefail
scripts="$(cd "$(dirname "$0")" && pwd)"
cd "$scripts/.."

"$scripts/build.sh" -DKVCODEC_WERROR=ON

cmake --preset asan -DKVCODEC_WERROR=ON
cmake --build --preset asan
# Not through ctest: a process for each test costs more than the tests under the sanitizers.
for tests in build/asan/tests/kvcodec*_tests; do
    "$tests" --gtest_brief=1
done

cmake --preset tsan -DKVCODEC_WERROR=ON
cmake --build --preset tsan --target kvcodec_tests kvcodec_attend_tests kvcodec_store_tests
# The thread sanitizer wants its memory where some kernels' randomisation may lay other things.
steady=(setarch --addr-no-randomize)
"${steady[@]}" true 2> /dev/null || steady=()
for tests in kvcodec_tests kvcodec_attend_tests kvcodec_store_tests; do
    "${steady[@]}" "build/tsan/tests/$tests" --gtest_brief=1
done

"$scripts/get-python.sh" > /dev/null || echo "tests of Python hosts are left out" >&2

# Integration tests hold a lock on the processor, so that --parallel serves the unit tests only.
ctest --preset release --parallel "$(nproc)"
