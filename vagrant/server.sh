#!/bin/sh
# Provisions a server: an NTP daemon with its usual settings, and ntpguard in front of it. ADDRESS is
# this machine's in the lab; DAEMON is chrony or ntpsec.
set -eu

daemon=${DAEMON:-chrony}
INTERFACE=$(ip -o -4 address show to "$ADDRESS" | awk '{ print $2 }')
export INTERFACE DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$daemon"
# made on the host, or here
set -- /ntpguard/dist/ntpguard_*_all.deb
if [ ! -e "$1" ]; then
	apt-get install -y -qq --no-install-recommends make
	make -C /ntpguard deb
	set -- /ntpguard/dist/ntpguard_*_all.deb
fi
/ntpguard/vagrant/configure "$daemon"
apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "$1"
systemctl daemon-reload
systemctl restart "$daemon" ntpguard
