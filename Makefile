# Everything a person or a machine does with Ashlar. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/sbin:/sbin
CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Where the laboratory lives, and what it is made of.
LAB ?= $(CURDIR)/.lab
DISKS ?= 6
DISK_SIZE ?= 2G
TOLERANCE ?= double
# Chooses among tests by a part of their name: make unit T=redundancy
T ?=

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  LAB=$(LAB) DISKS=$(DISKS) DISK_SIZE=$(DISK_SIZE) TOLERANCE=$(TOLERANCE)"

.PHONY: setup
setup: ## Install what is missing on Debian 12 or later (root or sudo)
	scripts/setup.sh

.PHONY: build
build: ## Build the ashlar command (release)
	$(CARGO) build --locked --release -p ashlar-tools

.PHONY: test
test: lint docs deny unit ## Lint, docs, licences, all tests that need no machine to themselves
	@echo "make test: all passed"

.PHONY: lint
lint: ## Formatting and clippy, warnings are errors
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: fmt
fmt: ## Format the sources
	$(CARGO) fmt --all

.PHONY: docs
docs: ## Build the API documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet

.PHONY: deny
deny: ## Licences and origins of dependencies, by cargo-deny if it is installed
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check bans licenses sources; \
	else \
		scripts/licences.py; \
	fi

# Unit, property, simulation, crash and end-to-end tests. A test that lacks a tool or a privilege says so and is counted passed;
# what was left out is listed at the end. The command under test is built as a package of its own and kept aside: building the whole
# workspace at once would turn features on in it that only the tests ask for.
UNDER_TEST := $(TARGET)/under-test
unit: export ASHLAR_BIN := $(UNDER_TEST)/ashlar
unit: export ASHLAR_SKIPPED := $(UNDER_TEST)/skipped.txt
.PHONY: unit
unit: ## All tests (T=NAME chooses)
	$(CARGO) build --locked -p ashlar-tools
	@mkdir -p $(UNDER_TEST) && cp $(TARGET)/debug/ashlar $(ASHLAR_BIN) && : >$(ASHLAR_SKIPPED)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --locked --workspace $(T); \
		$(if $(T),,$(CARGO) test --locked --workspace --doc;) \
	else \
		set -x; $(CARGO) test --locked --workspace --no-fail-fast $(T); \
	fi
	$(if $(T),,python3 -B -m unittest discover -s tools/bench && python3 -B -m unittest discover -s scripts)
	@if [ -s $(ASHLAR_SKIPPED) ]; then echo "left out here:"; sort -u $(ASHLAR_SKIPPED); fi

# An appliance with a NAS server and an export, used by a client. LAB_NAS=DIR is its directory.
LAB_NAS ?= $(CURDIR)/.lab-nas
.PHONY: lab-nas lab-nas-down
lab-nas: ## An appliance that serves NFS, used by a client while the daemon is killed (root)
	scripts/lab-nas.sh up "$(LAB_NAS)"
lab-nas-down: ## Take it away
	scripts/lab-nas.sh down "$(LAB_NAS)"

# Tests on Debian's kernel in an emulated machine, one boot for all; there a test that lacks something fails. The whole workspace is named so that
# what `unit` built is used again.
test-vm: export ASHLAR_BIN := $(UNDER_TEST)/ashlar
test-vm: export ASHLAR_REQUIRE_ALL := 1
# The series of Debian's kernel to boot; newest for one that can change the size of ublk devices in use.
KERNEL ?= 6.12
.PHONY: test-vm
test-vm: ## Tests on a real kernel with real block devices, in an emulated machine (T=NAME chooses; KERNEL=newest)
	scripts/setup.sh $(if $(filter newest,$(KERNEL)),--vm-newest,--vm)
	$(CARGO) build --locked -p ashlar-tools
	@mkdir -p $(UNDER_TEST) && cp $(TARGET)/debug/ashlar $(ASHLAR_BIN)
	@binary=$$($(CARGO) test --locked --workspace --test platform --no-run --message-format=json-render-diagnostics | \
		jq -r 'select(.reason == "compiler-artifact" and .target.name == "platform") | .executable'); \
	set -x; scripts/vm.sh tests --kernel $(KERNEL) $(if $(ASHLAR_VM_KILLS),--limit 3600 --test-limit 900) $(if $(T),--only $(T)) "$$binary"

# The package is made of the debug build, which `unit` has built already.
test-package: export ASHLAR_BIN := $(UNDER_TEST)/ashlar
.PHONY: test-package
test-package: ## The Debian package: installed, upgraded, removed in a Debian of its own (root)
	scripts/setup.sh --package
	$(CARGO) build --locked -p ashlar-tools
	@mkdir -p $(UNDER_TEST) && cp $(TARGET)/debug/ashlar $(ASHLAR_BIN)
	scripts/test-package.sh

# The package under a real systemd and a real kernel: file systems on ublk devices through restarts, upgrades and the stop of the machine.
test-service: export ASHLAR_BIN := $(UNDER_TEST)/ashlar
.PHONY: test-service
test-service: ## The package on a whole machine with systemd, in an emulated machine
	scripts/setup.sh --package --vm
	$(CARGO) build --locked -p ashlar-tools
	@mkdir -p $(UNDER_TEST) && cp $(TARGET)/debug/ashlar $(ASHLAR_BIN)
	first=$$(scripts/package.sh --quick --binary $(ASHLAR_BIN) $(UNDER_TEST)); \
	second=$$(scripts/package.sh --quick --binary $(ASHLAR_BIN) --version 9.9 $(UNDER_TEST)); \
	scripts/vm.sh service --limit 1200 -- scripts/vm/package.sh "$$first" "$$second"

.PHONY: package
package: build ## The Debian package of the release build
	scripts/setup.sh --package
	scripts/package.sh

# The long version of `test`: more seeds, more rounds, advisories. Variables that are set already are kept.
.PHONY: nightly
nightly: export ASHLAR_SIM_TIMES ?= 50
nightly: export ASHLAR_SIM_POINTS ?= 1000000
nightly: export ASHLAR_KILL_ROUNDS ?= 500
nightly: export ASHLAR_VM_KILLS ?= 20
nightly: export ASHLAR_FUZZ_SECS ?= 600
nightly: export NEXTEST_PROFILE ?= nightly
nightly: lint docs ## The long tests: 50 times the seeds (100,000 of the general ones), 500 kills, long fuzzing
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; fi
	$(MAKE) unit
	$(MAKE) fuzz SECS=$(ASHLAR_FUZZ_SECS)
	$(MAKE) test-vm
	$(MAKE) test-vm KERNEL=newest T=ublk
	$(MAKE) test-service
	@echo "make nightly: all passed"

SECS ?= 60
.PHONY: fuzz
fuzz: ## Coverage-guided fuzzing of the decoders and of the NBD server (SECS=60 each)
	scripts/setup.sh --fuzz
	scripts/fuzz.sh --secs $(SECS)

.PHONY: bench
bench: build ## The engine against physical limits, then a short comparison with a file and NBD servers
	$(CARGO) bench --locked -p ashlar-blockdev --bench engine -- $(TARGET)/bench
	ASHLAR=$(TARGET)/release/ashlar tools/bench/bench.py run $(BENCH_ARGS)

.PHONY: lab
lab: ## A whole appliance from files, with a mounted volume of real data
	scripts/lab.sh up --dir "$(LAB)" --disks $(DISKS) --disk-size $(DISK_SIZE) --tolerance $(TOLERANCE)

.PHONY: lab-down
lab-down: ## Remove every trace of it
	scripts/lab.sh down --dir "$(LAB)"

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
