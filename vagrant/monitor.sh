#!/bin/sh
# Provisions the monitor: a Prometheus that scrapes SERVER and SERVER2, with the alerts.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends prometheus
cp /ntpguard/deploy/prometheus/ntpguard.rules.yml /etc/prometheus/
/ntpguard/vagrant/configure monitor
systemctl restart prometheus
