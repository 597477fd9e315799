#!/bin/sh
# Installs what tests/layout needs on Debian 12: HAProxy.
# Its service is not started. Safe to run again: does nothing when it is there. Needs root otherwise.
set -eu
me=tests/layout
. "$(dirname "$0")/../support/debian.sh"

missing() {
  have haproxy || echo "HAProxy"
}

begin "HAProxy is"
update_packages
install_packages haproxy
finish "HAProxy is"
