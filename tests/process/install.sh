#!/bin/sh
# Installs what tests/process needs on Debian 12: rsyslog.
# Its service is not started. Safe to run again: does nothing when it is there. Needs root otherwise.
set -eu
me=tests/process
. "$(dirname "$0")/../support/debian.sh"

missing() {
  have rsyslogd || echo "rsyslog"
}

begin "rsyslog is"
update_packages
install_packages rsyslog
finish "rsyslog is"
