#!/usr/bin/env bash
# Downloads the pinned llama.cpp, builds its programs once into the cache folder and prints that build folder.
# An interrupted run is resumed; nothing is used before it is complete. With --source: only unpack, print the tree.
source "$(dirname "$0")/common.sh"

mkdir -p "$llama_root"
exec 9> "$llama_root/lock"
flock 9

if [[ ! -f "$llama_src/.unpacked" ]]; then
    download "$llama_package" "$llama_archive" "$llama_sha256"
    rm -rf "$llama_src"
    mkdir -p "$llama_src"
    tar -xzf "$kvcodec_cache/downloads/$llama_archive" -C "$llama_src" --strip-components=3 \
        --wildcards '*/vendor/llama.cpp/*'
    touch "$llama_src/.unpacked"
fi
if [[ ${1:-} == --source ]]; then
    echo "$llama_src"
    exit
fi

build="$(llama_build_dir)"
if [[ ! -f "$build/.built" ]]; then
    echo "building llama.cpp in $build (about 15 minutes on two cores, once)" >&2
    options=(
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF
        -DLLAMA_USE_PREBUILT_UI=OFF
    )
    for feature in $(cpu_features); do
        options+=("-DGGML_$feature=ON")
    done
    cmake -S "$llama_src" -B "$build" -G Ninja "${options[@]}" >&2
    cmake --build "$build" --target llama ggml ggml-cpu llama-completion llama-cli llama-server llama-bench \
        llama-batched-bench llama-perplexity >&2
    touch "$build/.built"
fi
echo "$build"
