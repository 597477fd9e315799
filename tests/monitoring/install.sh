#!/bin/sh
# Gets what tests/monitoring needs on Debian 12: promtool, out of the package of Prometheus, which is not installed but
# unpacked into tests/monitoring/.lab (git-ignored). Safe to run again: does nothing when it is there.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
lab=$here/.lab
promtool=$lab/promtool

if command -v promtool >/dev/null 2>&1 || [ -x "$promtool" ]; then
  echo "tests/monitoring: promtool is there"
  exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg >/dev/null 2>&1; then
  echo "tests/monitoring: this script knows Debian only (apt-get, dpkg)" >&2
  exit 1
fi

mkdir -p "$lab/download"
trap 'rm -rf "$lab/download"' EXIT
trap 'exit 1' HUP INT TERM
[ "$(id -u)" -ne 0 ] || apt-get update -q
# APT::Sandbox::User: as root apt would download as _apt, who may not write here.
(cd "$lab/download" && apt-get download -q -o APT::Sandbox::User=root prometheus)
dpkg -x "$lab"/download/prometheus_*.deb "$lab/download"
mv "$lab/download/usr/bin/promtool" "$promtool"
"$promtool" --version >/dev/null
echo "tests/monitoring: promtool is installed"
