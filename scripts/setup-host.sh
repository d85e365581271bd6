#!/bin/sh
# Installs the system packages that PinTok is built and tested with. Debian 12, Ubuntu 24.04 or newer.
# Asks nothing. Needs root only where a package is missing. Run again at any time.
set -eu

packages="ca-certificates clang curl ethtool gcc iproute2 iputils-ping libbpf-dev libpcre2-dev libxdp-dev
          linux-libc-dev llvm make pkg-config procps python3 python3-dev python3-venv valgrind"

installed() {
    dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'
}

install_missing() {
    missing=""
    for package in "$@"; do
        installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "setup-host.sh: missing system packages:$missing" >&2
        echo "setup-host.sh: run as root: scripts/setup-host.sh" >&2
        exit 1
    fi
    echo "setup-host.sh: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # shellcheck disable=SC2086 # a list of names
    apt-get -qq install --yes --no-install-recommends $missing >/dev/null
}

if ! command -v apt-get >/dev/null; then
    echo "setup-host.sh: this host has no apt-get; install the equivalents of: $packages" >&2
    exit 1
fi

# shellcheck disable=SC2086
install_missing $packages
# The sanitizer and fuzzer libraries of clang are packaged under its version.
install_missing "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
echo "setup-host.sh: all system packages are present"
