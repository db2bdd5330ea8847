# make demo: sets everything up, then the main job on real daemons
# make test: sets everything up, then every test; make test-newest: with the newest libraries
# make model: PACKETS packets through the model and the program; writes tests/model/RESULT.json
.PHONY: setup demo lab test test-newest test-kernels model attacks lint reference build deb test-deploy clients fuzz soak bench clean
.DEFAULT_GOAL := test

VENV := .venv
PYTHON := $(VENV)/bin/python
BPF := $(wildcard bpf/*.h bpf/*.c)

PACKETS := 10000000
# of make soak and make fuzz
MINUTES := 60

# to build, to run, and to check; services that a package would start stay down
PACKAGES := clang clang-format libclang-rt-14-dev libbpf-dev libbpf1 linux-libc-dev python3-venv \
	python3-click python3-prometheus-client python3-pyroute2 python3-rich python3-bpfcc \
	iproute2 ethtool iputils-ping tcpdump chromium chromium-driver util-linux procps strace bpftool systemd prometheus \
	nftables iptables groff zsh fish python3 ruby shellcheck vagrant curl libedit2 libgnutls30 libnettle8 libseccomp2 libcap2 libbsd0 libssl3 openssl netbase

# real NTP daemons conflict with one another as packages: they are unpacked, not installed
PEERS := chrony ntpsec ntpsec-ntpdig python3-ntp openntpd systemd-timesyncd

# for tests: make demo DEMO='--seconds 1'; make bench BENCH='--only cost --rounds 1'
DEMO :=
BENCH :=

setup: build/.packages build/.installed build/peers/.done build/busybox/ntpd

build/.packages: Makefile
	mkdir -p build
	@echo "installing what is missing of: $(PACKAGES)"
	tests/setup-packages $(PACKAGES)
	touch $@

build/.installed: build/.packages pyproject.toml hatch_build.py $(BPF)
	test -x $(PYTHON) || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

build/peers/.done: build/.packages
	rm -rf build/peers && mkdir -p build/peers
	cd build/peers && apt-get download -qq -o APT::Sandbox::User=root $(PEERS)
	cd build/peers && dpkg-deb -x openntpd_*.deb openntpd && rm openntpd_*.deb # its ntpd is ntpsec's too
	cd build/peers && for package in *.deb; do dpkg-deb -x "$$package" . || exit 1; done
	cp build/peers/usr/lib/*/ntp/libntpc.so build/peers/usr/lib/python3/dist-packages/ntp/
	touch $@

build/busybox/ntpd: build/.packages tests/setup-busybox
	tests/setup-busybox $@

# setpriv: so that the demonstration ends with make, even if that is killed
demo: setup
	@setpriv --pdeathsig KILL $(PYTHON) -m tests.lab.demo $(DEMO)

lab: setup
	tests/private $(PYTHON) -m pytest tests/lab

# in two parts, three files or one at a time: see tests/run.py
test: setup
	$(PYTHON) -m tests.run

# what depends on a library, with the newest of each: .venv has the oldest, Debian 12's
LIBRARIES := click prometheus-client pyroute2 rich
NEWEST := build/newest/bin/python

build/newest/.done: build/.installed
	/usr/bin/python3 -m venv --system-site-packages build/newest
	$(NEWEST) -m pip install --quiet --disable-pip-version-check --upgrade $(LIBRARIES) --editable '.[dev]'
	touch $@

test-newest: setup build/newest/.done
	NTPGUARD_NEWEST=1 $(NEWEST) -m tests.run newest

# the newest kernel of each suite, booted under emulation, with the object of the build and with that of
# the newest clang that is packaged; writes tests/kernels/RESULT.json; KERNELS='--minutes 15' bounds each
SUITES := bullseye bookworm trixie trixie-backports
NEWEST_CLANG = $(shell apt-cache search --names-only '^clang-[0-9]+$$' | cut -d' ' -f1 | sort -V | tail -1)
OTHER_OBJECT := build/kernels/newest-clang.bpf.o
KERNELS :=

test-kernels: setup
	tests/setup-packages busybox-static cpio kmod qemu-system-x86 $(NEWEST_CLANG)
	tests/kernels/fetch $(SUITES)
	$(PYTHON) -m tests.kernels $(KERNELS) $(SUITES:%=build/kernels/%/root)
	CLANG=$(NEWEST_CLANG) $(PYTHON) -m tests.bpf.clang bpf/ntpguard.bpf.c $(OTHER_OBJECT)
	NTPGUARD_OBJECT=$(OTHER_OBJECT) $(PYTHON) -m tests.kernels $(KERNELS) --judging $(SUITES:%=build/kernels/%/root)

model: setup
	tests/private $(PYTHON) -m tests.model.run $(PACKETS)

# what attacks do to whom, on the virtual clock: docs/explanation/attacks.md
attacks: setup
	tests/private $(PYTHON) -m tests.attack.run

# docs/reference and docs/man, from the code
reference: setup
	$(PYTHON) -m tests.docs.reference

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	clang-format --dry-run -Werror $(BPF) $(wildcard ntpguard/trace/*.c tests/lab/*.c tests/bench/*.c tests/fuzz/*.c tests/fuzz/*.h tests/faults/*.c)

# wheel and sdist
build: setup
	tests/setup-packages python3-hatchling
	/usr/bin/python3 -m hatchling build

# dist/ntpguard_<version>_all.deb, of the tree
deb:
	tests/setup-packages build-essential clang debhelper dh-python libbpf-dev linux-libc-dev lintian pybuild-plugin-pyproject \
		python3-all python3-click python3-hatchling python3-prometheus-client python3-pyroute2
	deploy/debian/build
	lintian --allow-root --fail-on warning dist/ntpguard_*_all.deb

# installed, upgraded and removed for real, in Debian roots of its own: slow, and not part of test
test-deploy: setup deb build
	tests/setup-packages ansible ansible-lint cpio debootstrap kmod qemu-system-x86 systemd-container vagrant-libvirt
	tests/deploy/debootstrap bookworm trixie
	tests/kernels/fetch bookworm
	$(PYTHON) -m pip download --quiet --dest build/deploy/wheels dist/ntpguard-*.whl hatchling
	tests/private $(PYTHON) -m pytest tests/deploy

# what real clients do on a KoD, on silence, and afterwards, in half an hour; writes docs/explanation/clients.md
clients: setup
	tests/setup-packages rdate libnet-ntp-perl monitoring-plugins-basic python3-ntplib ruby-net-ntp toybox
	tests/clients/fetch trixie chrony ntpd-rs ntpsec systemd-timesyncd
	command -v npm >/dev/null || tests/setup-packages nodejs npm
	$(PYTHON) -m tests.clients.makes
	tests/private $(PYTHON) -m tests.clients --write

# packet path, loaded program and readers fuzzed for so long; writes tests/fuzz/RESULT.json and the corpus
fuzz: setup
	tests/private $(PYTHON) -m tests.fuzz $(MINUTES) --write

# attack, changes, restarts and scrapes for so long; writes tests/soak/RESULT.json
soak: setup
	tests/private $(PYTHON) -m tests.soak $(MINUTES) --write

bench: setup
	tests/private $(PYTHON) -m tests.bench $(BENCH)
	NTPGUARD_BENCH=1 tests/private $(PYTHON) -m pytest -s tests/bench --deselect tests/bench/test_bench.py

clean:
	rm -rf build dist $(VENV) ntpguard/ntpguard.bpf.o .pytest_cache .mypy_cache .ruff_cache .hypothesis
