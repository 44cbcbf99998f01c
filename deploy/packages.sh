#!/usr/bin/env bash
# Installs what hearth needs to be built and tested, from the distribution's own packages (Debian 12, Ubuntu 24.04).
# Does nothing when all of it is there. Works as root and with sudo.
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config
    libzmq3-dev            # sockets
    libprotobuf-c-dev protobuf-c-compiler   # messages
    libsodium-dev          # keys
    liburing-dev           # reading model files
    libjson-c-dev          # JSON
    libedit-dev            # hearth chat
    libinih-dev            # configuration
    libmicrohttpd-dev      # the HTTP gateway
    libcmocka-dev python3  # tests
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "packages: all there"
    exit 0
fi
echo "packages: installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "packages: these need root, and there is no sudo: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
