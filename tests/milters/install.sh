#!/bin/sh
# Installs what tests/milters needs on Debian 12: OpenDKIM, OpenDMARC, libmilter with its headers, pymilter.
# No service of these packages is started. Safe to run again: does nothing when all is there. Needs root otherwise.
set -eu

policy=/usr/sbin/policy-rc.d
made_policy=no
packages="opendkim opendmarc libmilter-dev python3-milter openssl gcc libc6-dev"

have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

missing() {
  have opendkim || echo "OpenDKIM"
  have opendmarc || echo "OpenDMARC"
  have openssl || echo "openssl"
  have cc || echo "a C compiler"
  [ -e /usr/include/libmilter/mfapi.h ] || echo "libmilter-dev"
  [ -x /usr/bin/python3 ] && /usr/bin/python3 -c 'import Milter' 2>/dev/null || echo "pymilter for /usr/bin/python3"
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
  echo "tests/milters: all milters are there"
  exit 0
fi
echo "tests/milters: missing:" && echo "$wanted" | sed 's/^/  /'
if [ "$(id -u)" -ne 0 ]; then
  echo "tests/milters: run tests/milters/install.sh as root to install it" >&2
  exit 1
fi
if ! have apt-get; then
  echo "tests/milters: this script knows Debian only (apt-get)" >&2
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
  echo "tests/milters: still missing:" >&2 && echo "$wanted" | sed 's/^/  /' >&2
  exit 1
fi
echo "tests/milters: all milters are installed"
