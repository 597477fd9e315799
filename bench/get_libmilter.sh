#!/bin/sh
# Gets what the benchmark is measured against, below build/bench/libmilter (Debian; installing packages needs root):
#   - Debian's libmilter (libmilter-dev): a pool of worker threads;
#   - libmilter with a thread per connection, as Sendmail's own build makes it: compiled here, from Debian's source
#     package, without _FFR_WORKERS_POOL. Fetched with a list of sources of our own: /etc/apt is neither used nor changed;
#   - pymilter for the system's Python, strace to count system calls, a C compiler.
# Does nothing for what is there. Ends with 1 and names what it could not get; the rest can be measured all the same.
set -u

cd "$(dirname "$0")/.." || exit 1
target=$(pwd)/build/bench/libmilter
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
failed=no

say() { echo "bench/get_libmilter.sh: $*"; }
fail() {
  say "$*" >&2
  failed=yes
}
have() { command -v "$1" >/dev/null 2>&1; }

missing_packages() {
  have cc || echo "gcc libc6-dev"
  [ -e /usr/include/libmilter/mfapi.h ] || echo "libmilter-dev"
  have strace || echo "strace"
  { [ -x /usr/bin/python3 ] && /usr/bin/python3 -c 'import Milter' 2>/dev/null; } || echo "python3-milter"
}

install_packages() {
  packages=$(missing_packages | tr '\n' ' ')
  [ -z "$packages" ] && return
  if [ "$(id -u)" -ne 0 ] || ! have apt-get; then
    fail "missing, install as root: apt-get install $packages"
    return
  fi
  say "installing $packages"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # --no-remove: whatever else the machine runs is left as it is.
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 $packages >/dev/null
  packages=$(missing_packages | tr '\n' ' ')
  [ -z "$packages" ] || fail "still missing: $packages"
}

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release | tr -d '"'; }

# apt-get with sources, lists and cache of its own.
private_apt() {
  user=$([ "$(id -u)" -eq 0 ] && echo root || echo _apt)
  apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$target/apt/sources" \
    -o Dir::State::lists="$target/apt/lists" -o Dir::Cache="$target/apt/cache" -o APT::Sandbox::User="$user" "$@"
}

fetch_source() {
  ls "$target"/sendmail_*.orig.tar.* >/dev/null 2>&1 && return
  if ! have apt-get || [ ! -e "$keyring" ] || [ -z "$(codename)" ]; then
    fail "the sources of libmilter come from Debian, with apt-get and $keyring: not here"
    return 1
  fi
  mkdir -p "$target/apt/sources" "$target/apt/lists/partial" "$target/apt/cache/archives/partial"
  printf 'Types: deb-src\nURIs: %s\nSuites: %s %s-updates\nComponents: main\nSigned-By: %s\n' \
    "$mirror" "$(codename)" "$(codename)" "$keyring" >"$target/apt/sources/debian.sources"
  say "fetching the source package of sendmail ($(codename)) from $mirror"
  if ! (cd "$target" && private_apt update -qq && private_apt source -qq --download-only sendmail); then
    fail "fetching the source package failed"
    return 1
  fi
}

# What devtools would do for Linux, with Debian's own macros but one.
compile_threads() {
  work=$target/source
  rm -rf "$work" && mkdir -p "$work/objects" || return 1
  tar -xf "$(ls "$target"/sendmail_*.orig.tar.*[!c])" -C "$work" --strip-components=1 || return 1
  cp "$work/include/sm/os/sm_os_linux.h" "$work/objects/sm_os.h" || return 1
  sources=
  for name in main engine listener worker handler comm smfi signal sm_gethost monitor; do
    sources="$sources $work/libmilter/$name.c"
  done
  # shellcheck disable=SC2086
  (cd "$work/objects" && cc -O2 -w -c -pthread -D_REENTRANT -DNETINET6 -DSM_CONF_POLL=1 -DHASFCHMOD=1 -DHASSETRLIMIT=1 \
    -DHASFLOCK=1 -DNOT_SENDMAIL -Dsm_snprintf=snprintf -I. -I"$work/include" -I"$work/sendmail" \
    $sources "$work/libsm/errstring.c" "$work/libsm/strl.c") || return 1
  ar rcs "$target/libmilter.a.new" "$work"/objects/*.o && mv "$target/libmilter.a.new" "$target/libmilter.a"
}

install_packages
mkdir -p "$target"
if [ ! -e "$target/libmilter.a" ] && have cc && fetch_source; then
  say "compiling libmilter with a thread per connection"
  compile_threads || fail "compiling libmilter failed"
fi
[ "$failed" = no ]
