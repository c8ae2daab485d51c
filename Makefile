# Spanwatch's everyday commands; `make` alone lists them.
# CARGO_TARGET_DIR is honoured. Packages come from deploy/packages.txt and are asked for once (CI=true: not asked).

SHELL := /bin/bash
.DEFAULT_GOAL := help

target := $(or $(CARGO_TARGET_DIR),target)
bin := $(target)/release
# The lab needs root; a user's own cargo and target directory stay the user's.
as_root := $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## both programs, optimised, in target/release
	@deploy/packages.sh build
	cargo build --release --locked --workspace

.PHONY: demo
demo: build ## a lab of network namespaces: ordinary traffic, an nmap scan, its alerts, and every packet accounted for
	@deploy/packages.sh lab
	@$(as_root) deploy/demo/demo.sh --bin $(bin) run

.PHONY: demo-keep
demo-keep: build ## the same, and leaves it running to look around
	@deploy/packages.sh lab
	@$(as_root) deploy/demo/demo.sh --bin $(bin) keep

.PHONY: demo-stop
demo-stop: ## ends what demo-keep left running
	@$(as_root) deploy/demo/demo.sh stop

.PHONY: soak
soak: minutes ?= 10
soak: build ## the demo after minutes=10 of ordinary traffic, with the memory both programs occupy
	@deploy/packages.sh lab
	@$(as_root) deploy/demo/demo.sh --bin $(bin) soak $(minutes)

.PHONY: test
test: ## all tests; as root also the privileged ones (REQUIRE_PRIVILEGED=1: fail where they cannot run)
	@deploy/packages.sh build lab bench
	cargo test --release --locked --workspace

.PHONY: bench
bench: bench-build ## time, instructions and memory, stage by stage
	$(bin)/stages
	$(bin)/stages --memory
	benches/instructions.py $(bin)/stages

.PHONY: bench-update
bench-update: bench-build ## writes benches/instructions.toml, which `make test` holds every stage to
	benches/instructions.py --update $(bin)/stages

.PHONY: bench-build
bench-build:
	@deploy/packages.sh build bench
	cargo build --release --locked --workspace --bin stages

.PHONY: bench-detection
bench-detection: ## two weeks of traffic in virtual time, with and without attacks: what each rule finds, and what it should not
	cargo build --release --locked -p spanwatch-detection-bench
	$(bin)/detection run --check $(ARGS)
	$(bin)/detection memory

.PHONY: bench-scans
bench-scans: build ## as root: scans, floods and guesses with real tools in a lab, and how long each alert takes
	@deploy/packages.sh lab detection
	$(as_root) tests/detection/lab.py --bin $(bin) $(ARGS)

# The query engine is not needed for these two. ARGS: see `live --help`.
.PHONY: bench-live
bench-live: ## as root: the sensor live on a veth pair against the most that anyone could do there, and under a flood
	@deploy/packages.sh build lab
	cargo build --release --locked -p spanwatch-generator
	$(as_root) $(bin)/live $(ARGS)
	$(as_root) $(bin)/live --flood

.PHONY: bench-peers
bench-peers: ## as root: the sensor against softflowd and nfpcapd, on the same captures and the same core
	@deploy/packages.sh build lab peers
	cargo build --release --locked -p spanwatch-sensor
	$(as_root) benches/peers.py $(bin)/spanwatch-sensor

.PHONY: fmt
fmt: ## formats the Rust code
	cargo fmt --all

.PHONY: lint
lint: ## formatting, clippy with warnings as errors, shell scripts
	@deploy/packages.sh build check
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	shellcheck -x .ci/run deploy/packages.sh deploy/demo/demo.sh deploy/demo/lab.sh

.PHONY: licences
licences: ## every crate's licence against the list in .ci/licences.py
	@.ci/licences.py $(wildcard $(bin)/spanwatch-sensor $(bin)/spanwatch-collector)

.PHONY: install
install: ## as root: what `make build` made, configuration that is not there yet, systemd units (DESTDIR is honoured)
	@[ -x $(bin)/spanwatch-sensor ] && [ -x $(bin)/spanwatch-collector ] || { echo "run first: make build" >&2; exit 1; }
	install -D -m 755 -t $(DESTDIR)/usr/local/bin $(bin)/spanwatch-sensor $(bin)/spanwatch-collector
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system deploy/systemd/spanwatch-sensor.service deploy/systemd/spanwatch-collector.service
	install -D -m 644 deploy/systemd/spanwatch.sysusers $(DESTDIR)/usr/lib/sysusers.d/spanwatch.conf
	install -D -m 644 deploy/systemd/spanwatch.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/spanwatch.conf
	@for file in sensor.toml collector.toml $(patsubst deploy/%,%,$(wildcard deploy/rules/*.toml)); do \
		new=$(DESTDIR)/etc/spanwatch/$$file; \
		if [ -e $$new ]; then echo "kept $$new"; else install -D -m 644 deploy/$$file $$new; fi || exit; done
	@[ -n "$(DESTDIR)" ] || { systemd-sysusers spanwatch.conf && systemd-tmpfiles --create spanwatch.conf && systemctl daemon-reload; }
