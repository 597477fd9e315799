#!/bin/sh
# Installs what tests/layout needs on Debian 12: HAProxy.
# Its service is not started. Safe to run again: does nothing when it is there. Needs root otherwise.
set -eu

policy=/usr/sbin/policy-rc.d
made_policy=no

have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# Services must not be started by their packages: policy-rc.d says so to invoke-rc.d.
forbid_services() {
  [ -e "$policy" ] && return
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  made_policy=yes
}

cleanup() {
  [ "$made_policy" = yes ] && rm -f "$policy"
  return 0
}

if have haproxy; then
  echo "tests/layout: HAProxy is there"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "tests/layout: HAProxy is missing: run tests/layout/install.sh as root to install it" >&2
  exit 1
fi
if ! have apt-get; then
  echo "tests/layout: this script knows Debian only (apt-get)" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
forbid_services
apt-get update -q
# --no-remove: whatever else the machine runs is left as it is.
apt-get install -y -q --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 haproxy

if ! have haproxy; then
  echo "tests/layout: HAProxy is still missing" >&2
  exit 1
fi
echo "tests/layout: HAProxy is installed"
