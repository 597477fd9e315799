#!/bin/sh
# Installs what tests/milters needs on Debian 12: OpenDKIM, OpenDMARC, libmilter with its headers, pymilter.
# No service of these packages is started. Safe to run again: does nothing when all is there. Needs root otherwise.
set -eu
me=tests/milters
. "$(dirname "$0")/../support/debian.sh"

missing() {
  have opendkim || echo "OpenDKIM"
  have opendmarc || echo "OpenDMARC"
  have openssl || echo "openssl"
  have cc || echo "a C compiler"
  [ -e /usr/include/libmilter/mfapi.h ] || echo "libmilter-dev"
  [ -x /usr/bin/python3 ] && /usr/bin/python3 -c 'import Milter' 2>/dev/null || echo "pymilter for /usr/bin/python3"
}

begin "all milters are"
update_packages
install_packages opendkim opendmarc libmilter-dev python3-milter openssl gcc libc6-dev
finish "all milters are"
