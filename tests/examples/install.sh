#!/bin/sh
# Installs what tests/examples needs on Debian 12 beside Python packages: clamd and the Redis server.
# No service of these packages is started. Safe to run again: does nothing when all is there. Needs root otherwise.
set -eu
me=tests/examples
. "$(dirname "$0")/../support/debian.sh"

missing() {
  have clamd || echo "clamd"
  have redis-server || have valkey-server || echo "redis-server"
}

begin "all back-ends are"
update_packages
install_packages clamav-daemon redis-server
finish "all back-ends are"
