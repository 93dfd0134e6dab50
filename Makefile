# Everything a person does in this checkout. `make demo` and `make test` do all their set-up themselves (.ci/bootstrap).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
ARGS ?=
# What `make lock` writes runs here; `build-system.requires` is locked too, since the checkout installs itself.
REQUIRES := python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--only-binary :all: --custom-compile-command 'make lock'

.PHONY: help demo test lint fmt bench lock clean root runtime dev

help: ## list what can be done
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'ARGS="…" is handed on: make demo ARGS=--exit, make test ARGS="-k wire", make bench ARGS=--help'

demo: root runtime ## a whole node on this machine: pods, a small internet, the real daemon (root)
	@$(BIN)/egressd demo $(ARGS)

test: root lint ## format, lint, types, import rule and all tests on the real kernel (root)
	@echo '== tests (pytest)'
	@$(BIN)/pytest $(ARGS)

lint: dev ## format, lint, types and import rule alone
	@echo '== format (ruff format --check)'
	@$(BIN)/ruff format --check .
	@echo '== lint (ruff check)'
	@$(BIN)/ruff check .
	@echo '== types (mypy --strict)'
	@$(BIN)/mypy
	@echo '== import rule (lint-imports)'
	@$(BIN)/lint-imports --no-logo

fmt: dev ## put the code into form, and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: root dev ## CPU per query side by side with dnsmasq, as a table (root)
	@$(BIN)/python -m benchmarks $(ARGS)

lock: ## write the locks anew from pyproject.toml (needs uv; ARGS=--upgrade for newer versions)
	@command -v uv >/dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 3; }
	@$(REQUIRES) | uv $(COMPILE) pyproject.toml - --output-file requirements.lock $(ARGS)
	@$(REQUIRES) | uv $(COMPILE) pyproject.toml - --extra dev --constraint requirements.lock --output-file requirements-dev.lock $(ARGS)

clean: ## remove .venv and everything that tools left in the checkout
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

root:
	@[ "$$(id -u)" = 0 ] || { echo 'this makes network namespaces and firewall tables of its own: run it as root (sudo make …)' >&2; exit 3; }

runtime:
	@.ci/bootstrap runtime

dev:
	@.ci/bootstrap dev
