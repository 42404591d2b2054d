#!/usr/bin/env bash
# Makes sure of llama.cpp and the default model, then builds kvcodec, the plug-in and the tests in build/release.
# Arguments go to cmake's configuration.
source "$(dirname "$0")/common.sh"
scripts="$(cd "$(dirname "$0")" && pwd)"
cd "$scripts/.."

"$scripts/get-model.sh" > /dev/null
build="$("$scripts/get-llama-cpp.sh")"
cmake --preset release -DKVCODEC_LLAMA_SRC="$llama_src" -DKVCODEC_LLAMA_BUILD="$build" "$@"
cmake --build --preset release
