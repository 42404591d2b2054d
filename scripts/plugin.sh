#!/usr/bin/env bash
# Builds only the plug-in, for any llama.cpp: plugin.sh LLAMA_SRC [LLAMA_BUILD].
set -euo pipefail
scripts="$(cd "$(dirname "$0")" && pwd)"
llama_src="${1:-}"
llama_build="${2:-}"

if [[ -z $llama_src || ! -d $llama_src ]]; then
    echo "usage: make plugin LLAMA_SRC=/path/to/llama.cpp [LLAMA_BUILD=/path/to/its/build]" >&2
    [[ -z $llama_src ]] || echo "error: $llama_src is not a folder" >&2
    exit 2
fi
llama_src="$(cd "$llama_src" && pwd)"
llama_build="${llama_build:-$llama_src/build}"
if [[ ! -d $llama_build ]]; then
    echo "error: $llama_build is not a folder; build llama.cpp first or name its build with LLAMA_BUILD=" >&2
    exit 1
fi
llama_build="$(cd "$llama_build" && pwd)"

# One folder for each llama.cpp: ggml's structures change between versions, and the plug-in refuses any but its own.
cd "$scripts/.."
build="build/plugin-$(printf '%s\n' "$llama_src" "$llama_build" | sha256sum | cut -c 1-8)"
"$scripts/deps.sh" --plugin
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVCODEC_BUILD_TOOL=OFF -DKVCODEC_BUILD_TESTS=OFF \
    -DKVCODEC_LLAMA_SRC="$llama_src" -DKVCODEC_LLAMA_BUILD="$llama_build"
cmake --build "$build" --target ggml-kvcodec

plugin="$PWD/$build/ggml-kvcodec/libggml-kvcodec.so"
cat << TEXT

The plug-in for $llama_src:
    $plugin

Use it with any program of that llama.cpp:
    GGML_BACKEND_PATH=$plugin LLAMA_ARG_DEVICE=KVCODEC KVCODEC=budget=20% \\
        $llama_build/bin/llama-server -m MODEL.gguf
or, with the \`kvcodec\` command, which also checks the arguments and finds the model's artifact:
    kvcodec run --plugin $plugin --budget 20% -- llama-server -m MODEL.gguf
TEXT
