# make run    sets ktap up and traces this machine for three seconds
# make test   sets up what the tests need and runs them all
# make test-kernels  boots other kernels in an emulated machine and runs the tests of kernel functions there
# make test-arm64  the same with arm64 kernels and arm64's own programs (downloads some 200 MB once, takes half an hour)
# make fuzz    draws 20,000 scripts with events and compares what the VM and the kernel tell (FUZZ="--programs 500")
# make kills   kills ktap 200 times while it attaches, runs and detaches, and looks for what remains (KILLS="--rounds 50")
# make lint bench clean
#
# Set-up says in a line each what it installs, and does nothing the second time.

# Where this directory cannot be written and nobody has set ktap up in it, they work on a copy.

.DEFAULT_GOAL := run
.PHONY: run test test-kernels test-arm64 fuzz kills lint bench clean compiled packages emulator tracefs
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON   := /usr/bin/python3
VENV     := .venv
KTAP     := $(VENV)/bin/ktap
QEMU     := qemu-system-x86_64
EMULATOR := qemu-system-x86 qemu-system-common
PACKAGES := python3 python3-venv python3-bpfcc
SCRIPT   := scripts/syscalls_count.kp
RECORDING := examples/syscalls.ktaprec
COVERAGE_MINIMUM := 90
WRITABLE := $(shell [ -w . ] && echo yes)

SPACE := $() $()
# How to become root: nothing to do, sudo (which may ask only at a terminal), or no way (false).
ROOT := $(shell if [ "$$(id -u)" = 0 ]; then :; elif sudo -n true 2>/dev/null; then echo sudo; elif [ -t 0 ] && command -v sudo >/dev/null; then echo sudo; else echo false; fi)
AS_ROOT := $(addsuffix $(SPACE),$(filter sudo,$(ROOT)))
PIP := $(VENV)/bin/python3 -m pip install --quiet --quiet --no-input --disable-pip-version-check $(if $(shell [ -w "$$HOME" ] && echo y),,--no-cache-dir)

ifeq ($(WRITABLE)$(wildcard $(VENV)/.installed),)
run test test-kernels test-arm64 fuzz kills lint bench:
	@copy=$$(mktemp -d /tmp/ktap.XXXXXX)
	echo "$$(id -un) cannot write $(CURDIR): working on a copy in $$copy"
	tar -c --exclude=./.git --exclude=./.venv . | tar -x -C $$copy
	exec $(MAKE) -C $$copy $@
else

run: compiled tracefs
	@if why=$$($(AS_ROOT)$(KTAP) doctor --quiet); then
	    echo "tracing this machine for three seconds: $(AS_ROOT)$(KTAP) -d 3 $(SCRIPT)"
	    $(AS_ROOT)$(KTAP) -d 3 $(SCRIPT)
	    echo
	    echo "Go on with:"
	    echo "    $(AS_ROOT)$(KTAP) -e 'trace syscalls:* { print(cpu, pid, execname, argstr) }' -- ls"
	    echo "    $(AS_ROOT)$(KTAP) scripts/opensnoop.kp"
	else
	    echo "$$(id -un) cannot trace this machine:"
	    echo "$$why"
	    echo "So here are events of a recording: $(KTAP) --replay $(RECORDING) $(SCRIPT)"
	    $(KTAP) --replay $(RECORDING) $(SCRIPT)
	    echo
	    echo "Go on with:"
	    echo "    sudo make run"
	    echo "    $(KTAP) -e 'for (i = 1, 3) { print(\"hello\", i) }'"
	fi
	echo "    $(KTAP) help functions"

test: lint compiled tracefs emulator
	@export COVERAGE_FILE=$$PWD/.coverage
	$(VENV)/bin/coverage erase
	status=0
	$(VENV)/bin/coverage run -m pytest -n 2 -q -rs </dev/null || status=$$?
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report --fail-under=$(COVERAGE_MINIMUM) || status=$$?
	exit $$status

test-kernels: $(VENV)/.tested compiled emulator
	@$(AS_ROOT)$(VENV)/bin/python -m pytest -q -rs -p no:cacheprovider tests/kernels </dev/null

test-arm64: QEMU := qemu-system-aarch64
test-arm64: EMULATOR := qemu-system-arm qemu-system-common
test-arm64: $(VENV)/.tested compiled emulator
	@$(AS_ROOT)$(VENV)/bin/python -m pytest -q -rs -p no:cacheprovider tests/kernels/on_arm64.py </dev/null

fuzz: $(VENV)/.tested compiled tracefs
	@$(AS_ROOT)env PYTHONPATH=tests $(VENV)/bin/python3 -m tests.fuzz.longer $(FUZZ)

kills: $(VENV)/.tested compiled tracefs
	@$(AS_ROOT)env PYTHONPATH=tests $(VENV)/bin/python3 -m tests.kills.longer $(KILLS)

lint: $(VENV)/.tested
	@$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/mypy
	echo "ruff and mypy: clean"

bench: $(VENV)/.tested compiled tracefs
	@for file in tests/bench/*_bench.py; do echo "$$file"; $(VENV)/bin/python3 $$file; done

endif

# A fresh machine: Debian packages first, then a virtual environment of the system's own Python, which
# sees Debian's bcc (there is no package of it elsewhere).
$(VENV)/.installed: $(if $(WRITABLE),pyproject.toml) | packages
	@if [ ! -x $(VENV)/bin/pip ]; then
	    echo "making $(VENV) from $(PYTHON)"
	    $(PYTHON) -m venv --clear --system-site-packages $(VENV)
	fi
	echo "installing ktap with lark, llvmlite, pyelftools and rich into $(VENV)"
	$(PIP) --config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "installing pytest, hypothesis, coverage, mypy and ruff into $(VENV)"
	$(PIP) --config-settings editable_mode=compat --editable '.[test]'
	touch $@

# Byte code of Python's own, written even where PYTHONDONTWRITEBYTECODE is set: it is half of a start.
compiled: $(VENV)/.installed
	@[ -z "$(WRITABLE)" ] || $(VENV)/bin/python3 -m compileall -q ktap compiler vm

packages:
	@missing=""
	for package in $(PACKAGES); do
	    dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"
	done
	[ -n "$$missing" ] || exit 0
	if [ "$(ROOT)" = false ]; then
	    echo "missing, and only root can install them (sudo make, or apt-get install):$$missing"
	    case "$$missing" in *python3-venv*|*"python3 "*) exit 1; esac
	    exit 0
	fi
	echo "installing Debian packages:$$missing"
	log=$$(mktemp)
	apt="$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes"
	{ $$apt update && $$apt install --no-install-recommends $$missing; } >$$log 2>&1 </dev/null || { cat $$log; exit 1; }
	rm -f $$log

# Only tests of other kernels need it; they are skipped where it cannot be had.
emulator:
	@[ "$$(uname -m)" = x86_64 ] && command -v apt-get >/dev/null && ! command -v $(QEMU) >/dev/null || exit 0
	[ "$(ROOT)" != false ] || exit 0
	echo "installing Debian packages for tests on other kernels: $(EMULATOR)"
	apt="$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes"
	{ $$apt update && $$apt install --no-install-recommends $(EMULATOR); } >/dev/null 2>&1 </dev/null || echo "they cannot be had here: those tests will be skipped"

tracefs:
	@if [ ! -e /sys/kernel/tracing/events ] && [ "$(ROOT)" != false ]; then
	    echo "mounting tracefs at /sys/kernel/tracing"
	    $(ROOT) mount -t tracefs tracefs /sys/kernel/tracing || echo "that failed: see ktap doctor"
	fi

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
