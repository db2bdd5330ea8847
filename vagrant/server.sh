#!/bin/sh
# Provisions the server: chrony with its default settings, and ntpguard in front of it.
set -eu

# SERVER is this machine's address in the lab
interface=$(ip -o -4 address show to "$SERVER" | awk '{ print $2 }')
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chrony make
make -C /ntpguard setup
ln -sf /ntpguard/.venv/bin/ntpguard /usr/bin/ntpguard
printf 'allow\nlocal stratum 10\n' >/etc/chrony/conf.d/lab.conf
systemctl restart chrony
mkdir -p /etc/ntpguard
printf 'interfaces = ["%s"]\nmode = "enforce"\n' "$interface" >/etc/ntpguard/ntpguard.toml
cp /ntpguard/deploy/systemd/ntpguard.service /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now ntpguard
