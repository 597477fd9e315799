# What the scripts that install things for tests on Debian 12 have in common; they set `me` and `missing()`, and read this
# with `.` first. No service of a package is started, and no package is removed.
# shellcheck shell=sh

policy=/usr/sbin/policy-rc.d
made_policy=no

have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# begin WHAT: end here if nothing is missing ("WHAT there"), or if it cannot be installed; else get ready to install.
begin() {
  wanted=$(missing)
  if [ -z "$wanted" ]; then
    echo "$me: $1 there"
    exit 0
  fi
  echo "$me: missing:" && echo "$wanted" | sed 's/^/  /'
  if [ "$(id -u)" -ne 0 ]; then
    echo "$me: run $me/install.sh as root to install it" >&2
    exit 1
  fi
  if ! have apt-get || ! have dpkg; then
    echo "$me: this script knows Debian only (apt-get, dpkg)" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  trap cleanup EXIT
  trap 'exit 1' HUP INT TERM
}

cleanup() {
  [ "$made_policy" = yes ] && rm -f "$policy"
  return 0
}

# Services must not be started by their packages: policy-rc.d says so to invoke-rc.d.
update_packages() {
  if ! [ -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=yes
  fi
  apt-get update -q
}

# --no-remove: whatever else the machine runs is left as it is, another MTA for instance.
install_packages() {
  apt-get install -y -q --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 "$@"
}

# finish WHAT: say that all is there now ("WHAT installed"), or what is not.
finish() {
  wanted=$(missing)
  if [ -n "$wanted" ]; then
    echo "$me: still missing:" >&2 && echo "$wanted" | sed 's/^/  /' >&2
    exit 1
  fi
  echo "$me: $1 installed"
}
