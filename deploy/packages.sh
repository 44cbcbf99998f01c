#!/usr/bin/env bash
# Installs what hearth needs to be built and tested, from the distribution's own packages (Debian 12, Ubuntu 24.04).
# Does nothing when all of it is there. Works as root and with sudo.
#   deploy/packages.sh --unpack DIR    installs nothing: the libraries and what they need go into DIR, 20 MB, to be carried to a
#                                      machine that has a compiler but not them (tests/gpu.sh --libraries)
set -euo pipefail

tools=(build-essential cmake ninja-build libcmocka-dev python3)
libraries=(
    pkg-config
    libzmq3-dev            # sockets
    libprotobuf-c-dev protobuf-c-compiler   # messages
    libsodium-dev          # keys
    liburing-dev           # reading model files
    libjson-c-dev          # JSON
    libedit-dev            # hearth chat
    libinih-dev            # configuration
    libmicrohttpd-dev      # the HTTP gateway
)

# With all that they depend on, but for what comes with a compiler and for headers that only static linking asks for.
unpack() {
    local -a queue=("${libraries[@]}")
    local -A seen=()
    local into package line
    into=$(mkdir -p "$1" && cd "$1" && pwd)
    [ -z "$(ls -A "$into")" ] || { echo "packages: $1 is not empty" >&2; exit 1; }
    while [ ${#queue[@]} -gt 0 ]; do
        package=${queue[0]}
        queue=("${queue[@]:1}")
        [ -z "${seen[$package]:-}" ] || continue
        seen[$package]=yes
        while read -r line; do
            case $line in
            *-dev | libc6 | libgcc-s1 | libstdc++6 | libcrypt1 | debconf* | '<'*) ;;
            *) queue+=("$line") ;;
            esac
        done < <(apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$package" |
            sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: //p')
    done
    mkdir -p "$into/archives"
    (cd "$into/archives" && apt-get download -q "${!seen[@]}")
    for package in "$into"/archives/*.deb; do
        dpkg -x "$package" "$into"
    done
    rm -rf "$into/archives" "$into"/usr/share/{doc,info,man,locale,bug,lintian}
    find "$into" -name '*.a' -delete
    find "$into" -name '*.pc' -exec sed -i '/^Requires.private:/d' {} +
    # Links that name a place of the whole machine name the same place here.
    find "$into" -type l -lname '/*' | while read -r line; do
        ln -sfn "$(realpath -m --relative-to="$(dirname "$line")" "$into$(readlink "$line")")" "$line"
    done
    echo "packages: ${#seen[@]} unpacked in $1, $(du -sm "$into" | cut -f1) MB"
}

if [ "${1:-}" = --unpack ] && [ $# -eq 2 ]; then
    unpack "$2"
    exit 0
fi
missing=()
for package in "${tools[@]}" "${libraries[@]}"; do
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
