# make run    sets ktap up and traces this machine for three seconds
# make test   sets up what the tests need and runs them all
# make lint bench clean
#
# Set-up says in a line each what it installs, and does nothing the second time.

.DEFAULT_GOAL := run
.PHONY: run test lint bench clean compiled packages tracefs
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON   := /usr/bin/python3
VENV     := .venv
KTAP     := $(VENV)/bin/ktap
PACKAGES := python3 python3-venv python3-bpfcc
SCRIPT   := scripts/syscalls_count.kp
RECORDING := examples/syscalls.ktaprec
COVERAGE_MINIMUM := 90

# How to become root: nothing to do, sudo (which may ask only at a terminal), or no way (false).
ROOT := $(shell if [ "$$(id -u)" = 0 ]; then :; elif sudo -n true 2>/dev/null; then echo sudo; elif [ -t 0 ] && command -v sudo >/dev/null; then echo sudo; else echo false; fi)
PIP := $(VENV)/bin/python -m pip install --quiet --quiet --no-input --disable-pip-version-check $(if $(shell [ -w "$$HOME" ] && echo y),,--no-cache-dir)

run: compiled tracefs
	@if [ "$(ROOT)" != false ] && $(ROOT) $(KTAP) doctor --quiet; then
	    echo "tracing this machine for three seconds: ktap -d 3 $(SCRIPT)"
	    $(ROOT) $(KTAP) -d 3 $(SCRIPT)
	    echo
	    echo "Go on with:"
	    echo "    $(ROOT) $(KTAP) -e 'trace syscalls:* { print(cpu, pid, execname, argstr) }' -- ls"
	    echo "    $(ROOT) $(KTAP) scripts/opensnoop.kp      (and the other tools in scripts/)"
	    echo "    $(KTAP) help functions"
	else
	    echo "cannot trace this machine as $$(id -un) (see $(KTAP) doctor), so the events come from a recording:"
	    echo "ktap --replay $(RECORDING) $(SCRIPT)"
	    $(KTAP) --replay $(RECORDING) $(SCRIPT)
	    echo
	    echo "Go on with:"
	    echo "    $(KTAP) -e 'print(\"hello\")'"
	    echo "    sudo make run                             (the same on the live machine)"
	fi | sed 's/^    *\.venv/    .venv/'

test: lint compiled tracefs
	@export COVERAGE_FILE=$$PWD/.coverage
	$(VENV)/bin/coverage erase
	status=0
	$(VENV)/bin/coverage run -m pytest -n 2 -q -rs </dev/null || status=$$?
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report --fail-under=$(COVERAGE_MINIMUM) || status=$$?
	exit $$status

lint: $(VENV)/.tested
	@$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/mypy
	echo "ruff and mypy: clean"

bench: $(VENV)/.tested compiled tracefs
	@for file in tests/bench/*_bench.py; do echo "$$file"; $(VENV)/bin/python $$file; done

# A fresh machine: Debian packages first, then a virtual environment of the system's own Python, which
# sees Debian's bcc (there is no package of it elsewhere).
$(VENV)/.installed: pyproject.toml | packages
	@[ -x $(VENV)/bin/python ] || { echo "making $(VENV) from $(PYTHON)"; $(PYTHON) -m venv --system-site-packages $(VENV); }
	echo "installing ktap with lark, llvmlite and rich into $(VENV)"
	$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "installing pytest, hypothesis, coverage, mypy and ruff into $(VENV)"
	$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable '.[test]'
	touch $@

# Byte code of Python's own, written even where PYTHONDONTWRITEBYTECODE is set: it is half of a start.
compiled: $(VENV)/.installed
	@[ ! -w ktap ] || $(VENV)/bin/python -m compileall -q ktap compiler vm

packages:
	@missing=""
	for package in $(PACKAGES); do
	    dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"
	done
	[ -n "$$missing" ] || exit 0
	if [ "$(ROOT)" = false ]; then
	    echo "missing, and only root can install them:$$missing"
	    exit 0
	fi
	echo "installing Debian packages:$$missing"
	log=$$(mktemp)
	apt="$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes"
	{ $$apt update && $$apt install --no-install-recommends $$missing; } >$$log 2>&1 </dev/null || { cat $$log; exit 1; }
	rm -f $$log

tracefs:
	@if [ ! -e /sys/kernel/tracing/events ] && [ "$(ROOT)" != false ]; then
	    echo "mounting tracefs at /sys/kernel/tracing"
	    $(ROOT) mount -t tracefs tracefs /sys/kernel/tracing || echo "that failed: see ktap doctor"
	fi

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
