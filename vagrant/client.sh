#!/bin/sh
# Provisions the client: a chrony that asks the server far too often.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chrony
printf 'server 198.51.100.1 minpoll -4 maxpoll -4\n' >/etc/chrony/sources.d/lab.sources
systemctl restart chrony
