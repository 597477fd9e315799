#!/bin/sh
# Installs what tests/mta needs on Debian 12: Postfix as a package (its system instance is not started), and
# Sendmail, which conflicts with Postfix as a package, unpacked into tests/mta/.lab (git-ignored).
# Safe to run again: does nothing when all is there. Needs root for what is missing.
set -eu
me=tests/mta
. "$(dirname "$0")/../support/debian.sh"

here=$(cd "$(dirname "$0")" && pwd)
prefix=$here/.lab/sendmail
downloads=$here/.lab/download
sendmail=$prefix/usr/libexec/sendmail/sendmail
shim=$prefix/sendmail_shim.so
stale_shim="the shim for Sendmail"

# Libraries that Sendmail is linked with, and m4 for its configuration: none of them conflicts with anything.
libraries="m4 libdb5.3 libldap-2.5-0 liblockfile1 libnsl2 libsasl2-2 libssl3 libwrap0"

missing() {
  have postfix && have postconf || echo "Postfix"
  [ -e /etc/postfix/main.cf ] || echo "/etc/postfix/main.cf"
  have m4 || echo "m4"
  have cc || echo "a C compiler"
  [ -x "$sendmail" ] && [ -d "$prefix/usr/share/sendmail/cf" ] || echo "Sendmail below tests/mta/.lab"
  [ -x "$sendmail" ] && ldd "$sendmail" | sed -n 's/^[[:space:]]*\([^ ]*\) => not found/\1/p'
  [ "$shim" -nt "$here/sendmail_shim.c" ] || echo "$stale_shim"
}

unpack_sendmail() {
  rm -rf "$prefix" "$downloads"
  mkdir -p "$prefix" "$downloads"
  # APT::Sandbox::User: as root apt would download as _apt, who may not write here.
  (cd "$downloads" && apt-get download -q -o APT::Sandbox::User=root sendmail-bin sendmail-base sendmail-cf)
  for package in "$downloads"/*.deb; do
    dpkg -x "$package" "$prefix"
  done
  # A setgid program takes no LD_PRELOAD, and the instances here run as root with queues of their own.
  chmod 755 "$sendmail"
  rm -rf "$downloads"
}

begin "Postfix and Sendmail are"
if [ "$wanted" != "$stale_shim" ]; then
  update_packages
  have cc || install_packages gcc libc6-dev
  # shellcheck disable=SC2086
  install_packages $libraries
  have postfix && have postconf || install_packages postfix
  # Debian writes no main.cf without an answer to its questions; Postfix's programs want one, an empty one will do.
  [ -e /etc/postfix/main.cf ] || : >/etc/postfix/main.cf
  [ -x "$sendmail" ] && [ -d "$prefix/usr/share/sendmail/cf" ] || unpack_sendmail
fi
cc -O2 -Wall -shared -fPIC -o "$shim" "$here/sendmail_shim.c"

finish "Postfix and Sendmail are"
