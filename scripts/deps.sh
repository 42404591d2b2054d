#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that are missing; without the right to, prints the line to run and fails.
# Does nothing, network included, when all are there. With --plugin: only what the plug-in needs. Further arguments are
# further packages.
set -euo pipefail

packages=(build-essential cmake ninja-build libfmt-dev libhwy-dev libxxhash-dev)
if [[ ${1:-} == --plugin ]]; then
    shift
else
    packages+=(git python3 python3-pip libbenchmark-dev libcli11-dev libgtest-dev nlohmann-json3-dev)
fi
packages+=("$@")

if ! command -v dpkg-query > /dev/null; then
    echo "not a Debian or Ubuntu system: make sure that the equals of these are installed: ${packages[*]}" >&2
    exit 0
fi

missing=()
for package in "${packages[@]}"; do
    status="$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null || true)"
    [[ $status == installed ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then exit 0; fi

sudo=()
if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo > /dev/null || ! sudo --non-interactive true 2> /dev/null; then
        echo "error: packages are missing; run this as root, then try again:" >&2
        echo "apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    sudo=(sudo --non-interactive)
fi
echo "installing ${missing[*]}" >&2
# Another apt-get may be at work, as on a machine that has just started.
apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet --option DPkg::Lock::Timeout=300)
"${apt[@]}" update >&2
"${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >&2
