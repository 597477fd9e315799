# The two that matter:  make demo   and   make test.   `make help` lists the rest.
#
# Everything runs in a virtual environment: the active one, else .venv, which is made on first use. For another Python:
#   make test PYTHON=python3.12      (in .venv-3.12, beside the others)

.DEFAULT_GOAL := help
SHELL := /bin/sh

ifeq ($(origin PYTHON),undefined)
  PYTHON := $(shell command -v python3.11 || command -v python3 || echo python3)
  VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
else
  VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif

RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
STAMPS := build/stamps/$(subst /,_,$(VENV))
# Python files too are compiled, those that setup.py names: it finds out itself which have changed.
SOURCES := setup.py $(foreach kind,py pyx pxd,$(wildcard fastmilter/*.$(kind) fastmilter/server/*.$(kind)))
CHECKED := fastmilter tests examples bench contrib setup.py
# What pytest is told besides, for instance  make test PYTEST="-k session -x"
PYTEST ?=
# What the fuzzer is told, for instance  make fuzz FUZZ="--count 1000 --seed 1"
FUZZ ?= --count 1000000
# the soak, for instance  make soak SOAK="--seconds 600 --seed 1"
SOAK ?= --seconds 60
# and the measurements, for instance  make bench BENCH="--row typical-unix --rounds 3"
# or  make bench-idle BENCH="--connections 1000 --json"
BENCH ?=

.PHONY: help build demo soak test pytest mta milters promtool backends haproxy rsyslog lint format typing fuzz pictures bench bench-quick bench-idle libmilter clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

# What Debian keeps apart from its Python is installed where that can be done without asking (as root), else named.
PYTHON_VERSION = $$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
GET = sh -c 'if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends "$$1" >/dev/null; else false; fi || { echo "missing: apt-get install $$1"; exit 1; }' get

# The configuration file of the environment is as old as the environment; its python is a link to an older file.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fastmilter needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V 2>&1)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments yet"; $(GET) "$(PYTHON_VERSION)-venv"; }
	$(PYTHON) -m venv $(VENV)

# pip before 25.1 does not know the dependency groups of pyproject.toml.
$(STAMPS)/build-tools: pyproject.toml $(VENV)/pyvenv.cfg
	@$(RUN) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "Python.h is missing, which the C compiler needs"; $(GET) "$(PYTHON_VERSION)-dev"; }
	$(INSTALL) --upgrade 'pip>=25.1'
	$(INSTALL) --group build
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/built: $(STAMPS)/build-tools $(SOURCES)
	@echo "building fastmilter in $(VENV)"
	@$(RUN) -m pip install --no-build-isolation --editable . >build/log 2>&1 || { cat build/log; exit 1; }
	@touch $@

$(STAMPS)/checks: $(STAMPS)/built
	$(INSTALL) --group test --group examples --group lint
	@touch $@

build: $(STAMPS)/built ## Make the virtual environment and build fastmilter in it

demo: build ## Run a filter on a loopback port, play a message through it, show what it did
	$(RUN) examples/demo.py

test: lint typing mta milters promtool backends haproxy rsyslog pytest ## Run everything: lint, types, and all tests, with real MTAs and milters

pytest: $(STAMPS)/checks ## Run the tests alone; PYTEST="-k word" for some of them
	$(RUN) -m pytest $(PYTEST)

# Where nobody insists (CI, FASTMILTER_REQUIRE_MTA), the other tests run all the same, and pytest says what it skipped.
mta: ## Install Postfix and Sendmail for the tests (Debian, as root); does nothing when they are there
	tests/mta/install.sh || { [ -z "$$CI$$FASTMILTER_REQUIRE_MTA" ] && echo "The tests with real MTAs will be skipped."; }

milters: ## Install OpenDKIM, OpenDMARC, libmilter and pymilter for the tests (Debian, as root)
	tests/milters/install.sh || { [ -z "$$CI$$FASTMILTER_REQUIRE_MTA" ] && echo "The tests with real milters will be skipped."; }

promtool: ## Get Prometheus's promtool for the tests of metrics, dashboard and alert rules (Debian)
	tests/monitoring/install.sh || { [ -z "$$CI$$FASTMILTER_REQUIRE_MTA" ] && echo "The tests with promtool will be skipped."; }

backends: ## Install clamd and the Redis server for the tests of the examples (Debian, as root)
	tests/examples/install.sh || { [ -z "$$CI$$FASTMILTER_REQUIRE_MTA" ] && echo "The tests with real back-ends will be skipped."; }

haproxy: ## Install HAProxy for the test of several machines (Debian, as root)
	tests/layout/install.sh || { [ -z "$$CI$$FASTMILTER_REQUIRE_MTA" ] && echo "The test with HAProxy will be skipped."; }

rsyslog: ## Install rsyslog for the test of --syslog (Debian, as root)
	tests/process/install.sh || { [ -z "$$CI$$FASTMILTER_REQUIRE_MTA" ] && echo "The tests with rsyslog will be skipped."; }

lint: $(STAMPS)/checks ## Look for faults and wrong formatting
	$(RUN) -m ruff check $(CHECKED)
	$(RUN) -m ruff format --check $(CHECKED)

format: $(STAMPS)/checks ## Format the sources
	$(RUN) -m ruff format $(CHECKED)
	$(RUN) -m ruff check --fix $(CHECKED)

typing: $(STAMPS)/checks ## Check the types, and the stubs against the compiled modules
	$(RUN) -m mypy
	$(RUN) -m mypy.stubtest fastmilter._text fastmilter._call fastmilter._scan fastmilter._codec fastmilter._encode fastmilter._messages fastmilter.server._sockets fastmilter.server._in_work fastmilter.server._orphan --allowlist tests/typing/stubtest-allowlist.txt --ignore-unused-allowlist

soak: $(STAMPS)/checks ## A minute of all kinds of filters and clients, reloads, upgrades, kills; SOAK="--seconds 600" looks at memory too
	$(RUN) -m tests.soak.stress $(SOAK)

fuzz: $(STAMPS)/checks ## Feed the decoders a million mutated packets
	$(RUN) -m tests.fuzz.mutate $(FUZZ)

# What cannot be got is left out of the benchmark, and said there too.
libmilter:
	@bench/get_libmilter.sh || true

pictures: build ## Make the pictures of status and top in docs/monitoring.md anew
	$(RUN) -m contrib.pictures.make_pictures

bench: build libmilter ## Measure everything beside libmilter, pymilter and a raw loop; BENCH="--row NAME" for some of it
	$(RUN) -m bench.run $(BENCH)

bench-quick: build libmilter ## The main rows, in under two minutes
	$(RUN) -m bench.run --quick $(BENCH)

bench-idle: build ## Measure the memory of 10,000 idle connections
	$(RUN) bench/idle_memory.py $(BENCH)

clean: ## Remove what was built, and the virtual environments
	rm -rf build dist *.egg-info .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find fastmilter -name '*.so' -delete -o -name '*.c' -delete -o -name '*.html' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
