#!/bin/sh
# Installs what tests/examples needs on Debian 12 beside Python packages: clamd and the Redis server.
# No service of these packages is started. Safe to run again: does nothing when all is there. Needs root otherwise.
set -eu

policy=/usr/sbin/policy-rc.d
made_policy=no
packages="clamav-daemon redis-server"

have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

missing() {
  have clamd || echo "clamd"
  have redis-server || have valkey-server || echo "redis-server"
}

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

wanted=$(missing)
if [ -z "$wanted" ]; then
  echo "tests/examples: all back-ends are there"
  exit 0
fi
echo "tests/examples: missing:" && echo "$wanted" | sed 's/^/  /'
if [ "$(id -u)" -ne 0 ]; then
  echo "tests/examples: run tests/examples/install.sh as root to install it" >&2
  exit 1
fi
if ! have apt-get; then
  echo "tests/examples: this script knows Debian only (apt-get)" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
forbid_services
apt-get update -q
# --no-remove: whatever else the machine runs is left as it is.
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 $packages

wanted=$(missing)
if [ -n "$wanted" ]; then
  echo "tests/examples: still missing:" >&2 && echo "$wanted" | sed 's/^/  /' >&2
  exit 1
fi
echo "tests/examples: all back-ends are installed"
