#!/usr/bin/env bash
# Builds the library for 64-bit ARM and runs its unit tests under QEMU, as far as they need no llama.cpp. Half an hour on two
# cores. Needs, on Debian or Ubuntu:
#     dpkg --add-architecture arm64 && apt update
#     apt install g++-aarch64-linux-gnu qemu-user-static libhwy-dev:arm64 libfmt-dev:arm64 libgtest-dev:arm64
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset arm64
cmake --build --preset arm64
for tests in build/arm64/tests/kvcodec*_tests; do
    qemu-aarch64-static "$tests" --gtest_brief=1
done
