#!/usr/bin/env bash
# Installs the Python packages of the integration tests into the cache folder, with llama-cpp-python's own Python files,
# and prints that folder. Their llama.cpp is the one of get-llama-cpp.sh.
source "$(dirname "$0")/common.sh"

requirements="$(cd "$(dirname "$0")/.." && pwd)/tests/integration/requirements.txt"
folder="$kvcodec_cache/python"

mkdir -p "$kvcodec_cache" "$llama_root"
exec 9> "$kvcodec_cache/python.lock"
flock 9

stamp="$(python3 --version) $llama_sha256 $(sha256sum < "$requirements")"
if [[ ! -f "$folder/.installed" || "$(< "$folder/.installed")" != "$stamp" ]]; then
    (
        flock 8  # get-llama-cpp.sh downloads the same archive
        download "$llama_package" "$llama_archive" "$llama_sha256"
    ) 8> "$llama_root/lock"
    rm -rf "$folder.new"
    mkdir -p "$folder.new"
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action ignore \
        --target "$folder.new" --requirement "$requirements" >&2 ||
        die "pip could not install $requirements; check the network and that Python is 3.11 or later"
    tar -xzf "$kvcodec_cache/downloads/$llama_archive" -C "$folder.new" --strip-components=1 --wildcards '*/llama_cpp/*'
    echo "$stamp" > "$folder.new/.installed"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
fi
echo "$folder"
