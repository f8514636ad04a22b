# What a stranger, and the continuous integration, runs. Each target does its own set-up.

CARGO  ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS  := $(CURDIR)/.tools
VENV   := $(abspath $(TARGET))/venv
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)

# One profile for the demo and every test, so that dependencies are built once.
PROFILE := --profile thin

# Installed when missing: the program a test calls, and the Debian package it comes from.
TEST_TOOLS := nginx:nginx dig:dnsutils curl:curl h2load:nghttp2-client ss:iproute2 haproxy:haproxy unbound:unbound \
              dnsmasq:dnsmasq-base
GRPCIO     := grpcio==1.76.0

# How long each fuzz target runs, and which: each has a folder of seeds.
FUZZ_S       ?= 60
FUZZ_TARGETS ?= $(notdir $(wildcard tests/fuzz/seeds/*))

.PHONY: help demo build test test-setup attack fuzz fuzz-setup lint lint-setup bench bench-tail bench-ratelimit bench-readers clean

help:
	@echo "make demo   the mesh at work beside its rivals, half a minute in the terminal"
	@echo "make test   all tests (installs the Debian packages that they need, when missing)"
	@echo "make attack  known attacks on every port of a mesh of two hosts, a quarter of an hour"
	@echo "make fuzz   random heads, bodies and windows, a minute each (FUZZ_S=60), after a build of some minutes"
	@echo "make lint   formatting, clippy, documentation, licences"
	@echo "make bench  Evenkeel beside HAProxy and Envoy on this machine"
	@echo "make bench-tail  the tail of the latency under faults, beside tuned peers"
	@echo "make bench-ratelimit  limits that hosts share, beside HAProxy and Envoy"
	@echo "make bench-readers  what readers that stall do to others, dead peers, long paths"

demo:
	$(CARGO) run $(PROFILE) -p evenkeel -- demo $(DEMO)

build:
	$(CARGO) build $(PROFILE) -p evenkeel -p evenkeel-tests

# nginx starts by itself when Debian installs it; the tests start their own.
test-setup:
	@missing=; for pair in $(TEST_TOOLS); do \
	  PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	  /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	  if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	    $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	      apt-get install -y -qq --no-install-recommends $$missing; fi
	@test -x "$(VENV)/bin/python" || /usr/bin/python3 -m venv "$(VENV)"
	@"$(VENV)/bin/python" -c 'import grpc; assert "grpcio==" + grpc.__version__ == "$(GRPCIO)"' 2>/dev/null \
	  || "$(VENV)/bin/pip" install -q $(GRPCIO)

# The mesh's tests start up to eight processes each: nextest runs few of them at a time (.config/nextest.toml).
test: test-setup build
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -ex; \
	  EVENKEEL_TEST_PYTHON="$(VENV)/bin/python" $(CARGO) nextest run --workspace --cargo-profile thin --no-fail-fast; \
	else set -ex; \
	  $(CARGO) test $(PROFILE) --workspace --exclude evenkeel-tests --lib --tests; \
	  EVENKEEL_TEST_PYTHON="$(VENV)/bin/python" $(CARGO) test $(PROFILE) -p evenkeel-tests --no-fail-fast -- --test-threads=2; \
	fi
	$(CARGO) test $(PROFILE) --workspace --doc

# Options in ATTACK, such as ATTACK="--only http2"; docs/attacks.md says what is tried.
attack: build
	tests/attack/run.py --binary "$(TARGET)/thin/evenkeel" --testapp "$(TARGET)/thin/testapp" $(ATTACK)

fuzz-setup:
	@$(CARGO) fuzz --version >/dev/null 2>&1 || test -x "$(TOOLS)/bin/cargo-fuzz" \
	  || $(CARGO) install cargo-fuzz --locked --version 0.13.2 --root "$(TOOLS)"
	@command -v c++ >/dev/null || { echo "installing: g++"; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends g++; }

# Each target for FUZZ_S seconds; ends at the first crash, whose input cargo-fuzz names. No sanitizer, which would need a
# nightly compiler: what is fuzzed has no unsafe code. tests/fuzz is a workspace of its own that takes this one's versions.
fuzz: fuzz-setup
	cp Cargo.lock tests/fuzz/Cargo.lock
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p "tests/fuzz/corpus/$$target"; \
	  PATH="$(TOOLS)/bin:$$PATH" $(CARGO) fuzz run --fuzz-dir tests/fuzz --target-dir "$(abspath $(TARGET))" \
	    --sanitizer none "$$target" \
	    "tests/fuzz/corpus/$$target" "tests/fuzz/seeds/$$target" -- \
	    -max_total_time=$(FUZZ_S) -timeout=10 -verbosity=0 -print_final_stats=1; \
	done

lint-setup:
	@$(CARGO) deny --version >/dev/null 2>&1 || test -x "$(TOOLS)/bin/cargo-deny" \
	  || $(CARGO) install cargo-deny --locked --version 0.20.2 --root "$(TOOLS)"

lint: lint-setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --workspace --no-deps --document-private-items --locked
	PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny --log-level error check licenses bans sources

# Options in BENCH, such as BENCH=--write-docs; docs/performance.md says what is measured.
bench:
	tests/bench/run.py $(BENCH)

# The same options; docs/tail.md says what is measured.
bench-tail:
	tests/bench/tail.py $(BENCH)

# The same options; docs/ratelimit.md says what is measured.
bench-ratelimit:
	tests/bench/ratelimit.py $(BENCH)

# The same options and `--pause`; docs/flow-control.md says what is measured. Needs root, for network namespaces.
bench-readers:
	tests/bench/readers.py $(BENCH)

clean:
	$(CARGO) clean
	rm -rf "$(TOOLS)" tests/fuzz/corpus tests/fuzz/artifacts
