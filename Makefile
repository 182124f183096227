# The only task runner. `make help` lists the targets; variables are named with the targets that read them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where the demo keeps its image, so that the next one starts at once.
export DEMO_DIR ?= $(CURDIR)/target/demo
export PYTHONDONTWRITEBYTECODE = 1

# Which binaries scenarios run: `release` for figures; `dev` shares every compiled crate with the tests.
PROFILE ?= release
BIN = --bin target/$(patsubst dev,debug,$(PROFILE))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what all targets need (Debian, as root), or say what is missing; targets call it by themselves
	@integration/setup test demo lint

.PHONY: build
build: ## build the products in release mode (PROFILE=dev: as the tests do)
	cargo build --locked --profile $(PROFILE) --workspace --bins

.PHONY: test
test: ## format, clippy, unit, scenario and FUSE tests, examples in the documentation; a clone alone passes it
	@integration/setup test
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@rm -f target/nextest/default/junit.xml
	cargo nextest run --locked --workspace
	@integration/skips target/nextest/default/junit.xml
	@integration/summary.py --readme README.md
	cargo test --locked --workspace --doc --quiet

.PHONY: lint
lint: ## format, clippy, documentation; licences, bans and sources of the dependencies
	@integration/setup lint
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items --quiet
	cargo deny --locked check bans licenses sources

.PHONY: scenarios
scenarios:
	@integration/setup demo
	@$(MAKE) --no-print-directory build PROFILE=$(PROFILE)

.PHONY: demo
demo: scenarios ## publish a real image and run it from the mount (any other: IMAGE=docker.io/library/python:3.12-slim CMD='…')
	integration/demo/demo.py $(BIN) $(if $(IMAGE),--image '$(IMAGE)') $(if $(CMD),--cmd '$(CMD)')

.PHONY: smoke-engines
smoke-engines: PROFILE = dev
smoke-engines: scenarios ## one test an engine: the demo with every result checked, containerd of three versions, Docker, Apptainer, Podman, caches, another reader
	integration/demo/demo.py $(BIN) --check
	@$(MAKE) --no-print-directory test-containerd PROFILE=$(PROFILE) SMOKE=1
	@$(MAKE) --no-print-directory test-docker PROFILE=$(PROFILE) SMOKE=1
	@$(MAKE) --no-print-directory test-apptainer PROFILE=$(PROFILE) SMOKE=1
	@$(MAKE) --no-print-directory test-podman PROFILE=$(PROFILE) SMOKE=1
	@$(MAKE) --no-print-directory test-runners PROFILE=$(PROFILE) SMOKE=1
	integration/soak/snapshotter.py $(BIN) --starts 20 --count 5 --seed 1
	@$(MAKE) --no-print-directory test-proxies PROFILE=$(PROFILE)
	@$(MAKE) --no-print-directory test-second-reader PROFILE=$(PROFILE)
	@$(MAKE) --no-print-directory test-s3 PROFILE=$(PROFILE) ROUNDS=3
	@$(MAKE) --no-print-directory test-watch PROFILE=$(PROFILE) KILLS=5
	@$(MAKE) --no-print-directory test-crowd PROFILE=$(PROFILE) SAMPLE=1
	@$(MAKE) --no-print-directory test-units PROFILE=$(PROFILE)

.PHONY: engines
engines: scenarios
	@integration/setup engines
	cargo build --locked --manifest-path integration/cri/Cargo.toml --target-dir target/cri

.PHONY: test-engines
test-engines: PROFILE = dev
test-engines: ## everything with real engines, a table of what each of them can do, and the one of README.md
	@mkdir -p target; rm -f target/engines.table; status=0; \
	$(MAKE) --no-print-directory test-containerd PROFILE=$(PROFILE) TABLE=target/engines.table || status=1; \
	$(MAKE) --no-print-directory test-docker PROFILE=$(PROFILE) TABLE=target/engines.table || status=1; \
	$(MAKE) --no-print-directory test-apptainer PROFILE=$(PROFILE) TABLE=target/engines.table || status=1; \
	$(MAKE) --no-print-directory test-podman PROFILE=$(PROFILE) TABLE=target/engines.table || status=1; \
	$(MAKE) --no-print-directory test-runners PROFILE=$(PROFILE) TABLE=target/engines.table || status=1; \
	integration/table.py target/engines.table; echo; integration/summary.py target/engines.table || status=1; exit $$status

.PHONY: test-containerd
test-containerd: PROFILE = dev
test-containerd: engines ## containerd 1.6, 1.7 and 2 with the snapshotter (VERSION='1.6 2' some of them; SMOKE=1 a short pass)
	integration/containerd/containerd.py $(BIN) $(if $(VERSION),--version $(VERSION)) $(if $(SMOKE),--smoke) $(if $(TABLE),--table $(TABLE))

.PHONY: test-docker
test-docker: PROFILE = dev
test-docker: engines ## Docker 26 and 28 with the snapshotter, Docker 20.10 and 26 with the graph driver (SMOKE=1 a short pass)
	@status=0; \
	integration/docker/docker.py $(BIN) $(if $(SMOKE),--smoke) $(if $(TABLE),--table $(TABLE)) || status=1; \
	integration/docker/plugin.py $(BIN) $(if $(SMOKE),--smoke) $(if $(TABLE),--table $(TABLE)) || status=1; \
	exit $$status

.PHONY: test-apptainer
test-apptainer: PROFILE = dev
test-apptainer: engines ## Apptainer as root and as an ordinary user, compared with Docker (SMOKE=1 a short pass)
	integration/apptainer/apptainer.py $(BIN) $(if $(SMOKE),--smoke) $(if $(TABLE),--table $(TABLE))

.PHONY: test-podman
test-podman: PROFILE = dev
test-podman: engines ## Podman 4 and 5, as root and as an ordinary user, with both stores and the mirror (VERSION=5; SMOKE=1 a short pass)
	integration/podman/podman.py $(BIN) $(if $(VERSION),--version $(VERSION)) $(if $(SMOKE),--smoke) $(if $(TABLE),--table $(TABLE))

.PHONY: test-runners
test-runners: PROFILE = dev
test-runners: engines ## runc, bubblewrap and an overlay as of systemd-nspawn, on flat images (SMOKE=1 a short pass)
	@integration/setup runners
	integration/runners/runners.py $(BIN) $(if $(SMOKE),--smoke) $(if $(TABLE),--table $(TABLE))

.PHONY: test-second-reader
test-second-reader: PROFILE = dev
test-second-reader: scenarios ## our repositories through a reader of other people, beside our own client
	cargo build --locked --manifest-path integration/second-reader/Cargo.toml --target-dir target/second-reader
	integration/second-reader/compare.py $(BIN)

.PHONY: test-proxies
test-proxies: PROFILE = dev
test-proxies: scenarios ## cvmfs-client behind real Squids and nginx servers that fail one after another
	@integration/setup proxies
	integration/proxies/proxies.py $(BIN)

.PHONY: test-crowd
test-crowd: PROFILE = dev
test-crowd: engines ## 1, 10 and 100 containers of an image at once, and 20 cold nodes behind a real Squid: each object once (SAMPLE=1 fewer)
	@integration/setup proxies
	integration/crowd/crowd.py $(BIN) $(if $(SAMPLE),--containers 1 10 --nodes 4)

.PHONY: test-units
test-units: PROFILE = dev
test-units: engines ## a node and a publisher under a real systemd: kills, power cuts, boots; mounts by unit, fstab and autofs
	@integration/setup units
	integration/units/units.py $(BIN)

.PHONY: test-watch
test-watch: PROFILE = dev
test-watch: scenarios ## a publisher that watches: webhooks of a real registry, kill -9, changes of the list, its page in Chromium (KILLS=100; SEED=n repeats a run)
	@integration/setup page
	integration/watch/watch.py $(BIN) --kills $(or $(KILLS),100)
	integration/watch/page.py $(BIN)

.PHONY: test-s3
test-s3: PROFILE = dev
test-s3: scenarios ## a repository in a bucket: two publishers at once, kill -9, broken connections (ROUNDS=20; SEED=n repeats a run)
	cargo build --locked --profile $(PROFILE) -p publisher --example s3-server
	integration/s3/s3.py $(BIN) --rounds $(or $(ROUNDS),20)

.PHONY: bench
bench: scenarios ## the figures of the design as ratios to a floor measured in the same run (MEGABYTES=1500 LARGEST=1000)
	cargo build --locked --release -p publisher --examples
	integration/bench/convert.py $(BIN) --megabytes $(or $(MEGABYTES),1500) --largest $(or $(LARGEST),1000)
	cargo build --locked --release -p cvmfs --example walk
	integration/bench/walk.py $(BIN)
	integration/bench/replicate.py $(BIN)
	@$(MAKE) --no-print-directory bench-snapshotter PROFILE=$(PROFILE)

.PHONY: bench-many
bench-many: scenarios ## thousands of images in one repository: first pass, steady pass, one more large image (IMAGES=5000 MEGABYTES=400)
	integration/bench/many.py $(BIN) --images $(or $(IMAGES),5000) --megabytes $(or $(MEGABYTES),400)

.PHONY: bench-snapshotter
bench-snapshotter: engines ## from pull to first output, lazily and with overlayfs, also over a line of 20 ms and 100 Mbit/s (REPEAT=3; SUBJECT=learning; JSON=file)
	cargo build --locked --release -p snapshotter --example load
	integration/bench/snapshotter.py $(BIN) --repeat $(or $(REPEAT),3) $(if $(SUBJECT),--subject $(SUBJECT)) $(if $(JSON),--json $(JSON))

.PHONY: bench-coldstart
bench-coldstart: scenarios ## a cold start over a line of 20 ms and 100 Mbit/s, with and without what is fetched ahead (REPEAT=3; SUBJECT=learning; JSON=file)
	integration/bench/coldstart.py $(BIN) --repeat $(or $(REPEAT),3) $(if $(SUBJECT),--subject $(SUBJECT)) $(if $(JSON),--json $(JSON))

.PHONY: bench-warm
bench-warm: scenarios ## warm starts, a large file and whole images through a mount, beside the local disk (REPEAT=9; JSON=file; BEFORE=directory of an older client)
	cargo build --locked --release -p cvmfs --example fetch
	integration/bench/warm.py $(BIN) --repeat $(or $(REPEAT),9) $(if $(JSON),--json $(JSON)) $(if $(BEFORE),--before $(BEFORE))

.PHONY: bench-flat
bench-flat: engines ## a start from 1, 12 and 60 layers beside one from the flat, over a line of 20 ms and 100 Mbit/s (REPEAT=3)
	integration/bench/flat.py $(BIN) --repeat $(or $(REPEAT),3)

.PHONY: bench-collect
bench-collect: ## time and memory of a garbage collection among millions of objects (OBJECTS=10000000 ORPHANS=1000000)
	cargo build --locked --release -p cvmfs --example collect
	integration/bench/collect.py --objects $(or $(OBJECTS),10000000) --orphans $(or $(ORPHANS),1000000)

.PHONY: bench-remove
bench-remove: ## time and memory of dry runs, condemnation and sweep of images among thousands (IMAGES=5000)
	cargo build --locked --release -p publisher --example many-images
	target/release/examples/many-images $(or $(IMAGES),5000)

.PHONY: soak
soak: engines ## kill -9 at random moments of conversions, collections, and of pulls by containerd (COUNT=50 each; SEED=n repeats a run); thousands of random removals against a model; a registry that fails at random
	integration/soak/kill.py $(BIN) --count $(or $(COUNT),50)
	integration/soak/collect.py $(BIN) --count $(or $(COUNT),50)
	integration/soak/snapshotter.py $(BIN) --starts 100 --count $(or $(COUNT),50)
	@for seed in 1 2 3; do \
	  MODEL_STEPS=2000 MODEL_SEED=$$(( $(or $(SEED),0) * 10 + seed )) \
	  cargo test --locked --workspace --test removal -- model --nocapture || exit 1; \
	  FAULT_IMAGES=100 FAULT_ROUNDS=3 FAULT_SEED=$$(( $(or $(SEED),0) * 10 + seed )) \
	  cargo test --locked --workspace --test faults -- --nocapture || exit 1; done

.PHONY: clean
clean: ## remove everything that was built, the demo's image too
	cargo clean
