#!/bin/sh
# Provisions the client: a chrony that asks the server far too often. SERVER is its address.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chrony
/ntpguard/vagrant/configure client
systemctl restart chrony
