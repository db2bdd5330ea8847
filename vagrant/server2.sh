#!/bin/sh
# Provisions the second server: ntpsec instead of chrony.
set -eu

export DAEMON=ntpsec
exec /ntpguard/vagrant/server.sh
