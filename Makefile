# make setup   everything that building and testing needs (Debian or Ubuntu, as root or with sudo)
# make check   format, lint, types, layers
# make test    all tests that this machine can run; those on real nodes skip without $KB_E2E_BIN
# make fuzz    the fuzzers for longer: KB_FUZZ_ROUNDS=1000 make fuzz
# make build   dist/kb.pyz
# make release dist/ as a download page carries it: kb.pyz, SHA256SUMS, the bill of materials, the licences
# make e2e     the tests on real nodes: KB_E2E_BIN=/path/to/binaries make e2e
# make bench   speed, side by side with kubeadm: KB_E2E_BIN=... make bench

SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := openssl iproute2 make python3-venv

.PHONY: setup check format test fuzz build release e2e bench docs clean

setup:
	command -v apt-get >/dev/null && { $(SUDO) apt-get update -qq; $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); } || true
	[ -x $(PY) ] || python3 -m venv $(VENV)
	$(PY) -m pip install -q -r requirements-dev.txt

check:
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config pyproject.toml

format:
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test:
	$(VENV)/bin/pytest

fuzz:
	KB_FUZZ_ROUNDS=$${KB_FUZZ_ROUNDS:-20} $(VENV)/bin/pytest tests/fuzz

build:
	$(PY) build_zipapp.py

release:
	$(PY) build_zipapp.py --release

bench:
	$(PY) -m tests.bench --write

e2e:
	$(VENV)/bin/pytest -m e2e tests/e2e

docs:
	$(PY) -m tests.make_docs

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
