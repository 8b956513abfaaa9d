# make up | down | setup | check | test | bench
VENV := .venv
PY := $(VENV)/bin/python
DATA ?= data

.PHONY: help setup up down check test bench

help:
	@echo "make up      set up what is missing, start Nexus here and boot the VM hello"
	@echo "make down    stop Nexus and remove all that it made on this machine (DATA=$(DATA))"
	@echo "make setup   set-up alone: system packages, and Python packages in $(VENV)"
	@echo "make check   formatter, linter, types, import rules"
	@echo "make test    check, then all tests"
	@echo "make bench   measure, side by side with bare firecracker"

setup:
	@scripts/setup

up: setup
	@$(VENV)/bin/nexus up --data $(DATA) --demo

down:
	@$(VENV)/bin/nexus down --data $(DATA)

check:
	@scripts/setup --dev
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

test: check
	@scripts/test-parts
	@$(PY) -m pytest -n 2 --dist worksteal -m "not alone"
	@$(PY) -m pytest -m alone

bench:
	@scripts/setup --dev
	@scripts/test-parts
	@$(PY) -m bench --save
