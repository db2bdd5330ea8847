#!/bin/sh
# Provisions the client: a chrony that asks the server SERVER far too often, and `ask`, which asks as
# often as it is told to. The polite client is chrony too: chronyd -Q, see README.md.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chrony python3
install -m 755 /ntpguard/vagrant/ask /usr/local/bin/ask
/ntpguard/vagrant/configure client
systemctl restart chrony
