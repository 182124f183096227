# The only task runner. `make help` lists the targets; variables stand with the targets that read them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where downloads, demo images and reports are kept; `make clean` leaves the image cache of the demo alone.
export PYTHONDONTWRITEBYTECODE = 1
export DEMO_DIR ?= $(CURDIR)/target/demo

# The binaries the demo runs: `release` for figures, `dev` to share every compiled crate with the tests.
PROFILE ?= release
BIN_DIR  = target/$(patsubst dev,debug,$(PROFILE))
PRODUCTS = -p publisher -p client

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what the other targets need (Debian, as root); otherwise say what is missing
	@integration/setup

.PHONY: build
build: ## build the products in release mode (PROFILE=dev: unoptimised)
	cargo build --locked --profile $(PROFILE) $(PRODUCTS)

.PHONY: test
test: setup ## format, lints, unit, scenario and FUSE tests; a clone alone passes it
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@rm -f target/nextest/default/junit.xml
	cargo nextest run --locked --workspace
	@integration/skips target/nextest/default/junit.xml
	cargo test --locked --workspace --doc --quiet

.PHONY: lint
lint: ## format, clippy, documentation, and licences, bans and sources of dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items --quiet
	@integration/setup cargo-deny
	cargo deny --locked check bans licenses sources

.PHONY: demo
demo: setup build ## publish a real image and run it from the mount (IMAGE=registry/name:tag CMD='…' for any other)
	integration/demo/demo.py --bin $(BIN_DIR) $(if $(IMAGE),--image '$(IMAGE)') $(if $(CMD),--cmd '$(CMD)')

.PHONY: smoke-engines
smoke-engines: PROFILE = dev
smoke-engines: setup build ## one test an engine; today the demo with every result checked (engines come with their issues)
	integration/demo/demo.py --bin $(BIN_DIR) --check

.PHONY: bench
bench: setup build ## the figures of the design, each as a ratio to a floor measured in the same run
	cargo build --locked --release -p publisher --examples
	integration/bench/convert.py --bin $(BIN_DIR) --megabytes $(or $(MEGABYTES),1500) --largest $(or $(LARGEST),1000)

.PHONY: soak
soak: setup build ## kill -9 at random moments of a conversion (COUNT=50)
	integration/soak/kill.py --bin $(BIN_DIR) --count $(or $(COUNT),50)

.PHONY: clean
clean: ## remove everything that was built
	cargo clean
