# Two commands for a newcomer: `make demo` trains networks on real data, `make test` runs every test.
# Each sets up all it needs in .venv; a second call is quick.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test rust-test python-test test-processes docs wheel bench fuzz deny miri fuzz-rust clean

demo: .venv/.demo
	$(BIN)/modula-rs demo

# Both at once: the compiler of Rust leaves a core idle now and then.
test:
	$(MAKE) --jobs=2 rust-test python-test

rust-test:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked

python-test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest modula_rs._core
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Training, checkpoints and sweeps over 1, 2 and 4 processes on this machine. TIMES in a row, to find what hangs once in ten runs.
TIMES ?= 1

test-processes: .venv/.test
	for run in $$(seq $(TIMES)); do PROCESSES=all $(BIN)/python -m pytest tests/devices/test_processes.py || exit 1; done

# The tests that break things at random, FUZZ times as long as in `make test`, from the seed FUZZ_SEED (docs/reliability.md).
FUZZ ?= 50
FUZZ_SEED ?= 1
BROKEN := tests/network/test_tree_at_random.py tests/network/test_fingerprint.py tests/norm/test_array_forms.py \
	tests/package/test_checkpoint_hostile.py tests/package/test_checkpoint_states.py tests/package/test_data_hostile.py \
	tests/package/test_describe.py tests/package/test_files_together.py tests/package/test_memory_refused.py \
	tests/tracing/test_trace_hostile.py tests/transfer/test_store.py

fuzz: .venv/.test
	FUZZ=$(FUZZ) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest $(BROKEN)

# The documentation, in site/; a broken link or reference fails.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The source archive and the wheel, which serves every Python from 3.11 on: built, audited, and tried on each Python that is here.
wheel: .venv/.release
	$(BIN)/python ci/check_packages.py

bench: .venv/.test
	cargo bench --locked

# Licences, advisories and sources of the crates; needs cargo-deny.
deny:
	cargo deny check

# Undefined behaviour in the foreign function interface; needs a nightly compiler with Miri, and ten minutes.
miri:
	cargo +nightly miri test -p modula-ffi --test frames

# Trees and call frames from random bytes; needs a nightly compiler and cargo-fuzz. SECONDS for each target.
SECONDS ?= 600
fuzz-rust:
	cargo +nightly fuzz run tree -- -max_total_time=$(SECONDS) -rss_limit_mb=2048 -timeout=10
	cargo +nightly fuzz run frames -- -max_total_time=$(SECONDS) -rss_limit_mb=2048 -timeout=10

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Editable installs: Python sources are used where they stand, so only a change in Rust builds anew.
.venv/.demo .venv/.test .venv/.docs .venv/.release: .venv/.%: $(BIN)/python pyproject.toml $(RUST)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv target dist site python/modula_rs/_core*.so
