#!/bin/sh
# Provisions the client: a chrony that asks the server far too often. SERVER is its address.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chrony
printf 'server %s minpoll -4 maxpoll -4\n' "$SERVER" >/etc/chrony/sources.d/lab.sources
systemctl restart chrony
