#!/bin/sh
# Provisions the server: chrony with its default settings, and ntpguard in front of it.
set -eu

# SERVER is this machine's address in the lab
INTERFACE=$(ip -o -4 address show to "$SERVER" | awk '{ print $2 }')
export INTERFACE DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chrony make
make -C /ntpguard setup
ln -sf /ntpguard/.venv/bin/ntpguard /usr/bin/ntpguard
/ntpguard/vagrant/configure server
systemctl restart chrony
cp /ntpguard/deploy/systemd/ntpguard.service /etc/systemd/system/
systemctl daemon-reload
systemctl enable ntpguard
systemctl restart ntpguard
