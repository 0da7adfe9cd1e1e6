# `make help` lists what can be run. Everything works from a fresh clone.

CARGO ?= cargo

.PHONY: help demo demo-instance bench fuzz test lint fmt clean setup

help: ## list what can be run
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile

setup:
	@sh tests/setup.sh

demo: setup ## a fleet through a release, a bad one and two bad days, under load: three minutes after the build
	@$(CARGO) build --locked --release
	@$${CARGO_TARGET_DIR:-target}/release/demo

demo-instance: setup ## one instance through an ordinary day and two bad ones, under load: two minutes after the build
	@$(CARGO) build --locked --release
	@$${CARGO_TARGET_DIR:-target}/release/demo-instance

bench: setup ## measure what the project claims, beside the script, Fabric and ansible-pull: seven minutes after the build
	@$(CARGO) build --locked --release
	@$${CARGO_TARGET_DIR:-target}/release/bench

fuzz: ## fuzz whatever reads text of others: FUZZ_S seconds each, 60 by default, after a build of its own
	@sh tests/fuzz/run.sh

test: setup ## run all tests, with everything that they need installed first
	@$(CARGO) build --locked
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --locked --workspace; \
	else \
		echo 'cargo-nextest is not installed: the tests run by cargo test'; \
		$(CARGO) test --locked --workspace; \
	fi

lint: setup ## formatting, clippy, docs and the dependencies' rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --quiet
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check bans licenses sources; \
	else \
		echo 'cargo-deny is not installed: tests/tidy.rs checks licences, sources and bans'; \
	fi

fmt: ## format the code
	$(CARGO) fmt --all

clean: ## remove what was built
	$(CARGO) clean
