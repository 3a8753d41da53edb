# Two doors: `make lab` (sets up, builds, runs the labs) and `make test` (sets up, builds, runs every test shelf).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(shell find pylvs -name '*.pyx' -o -name '*.pxd')
ASAN := build/asan/lib

.PHONY: lab test build lint unit cases property golden wire asan bench clean

lab: build
	$(BIN)/pylvs lab run all

test: build lint unit cases property golden wire asan

build: build/.built

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip 'setuptools>=77' wheel 'cython>=3.1'
	touch $@

build/.built: $(VENV)/.ready setup.py $(CORE)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	mkdir -p build && touch $@

lint: build
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint pylvs bench

unit cases property golden: build
	$(BIN)/pytest tests/$@

wire: build
	$(BIN)/pytest tests/wire

# the core under AddressSanitizer and UndefinedBehaviorSanitizer, on the shelves that feed it frames
asan: build
	PYLVS_BUILD=asan $(BIN)/python setup.py --quiet build --build-lib $(ASAN) --build-temp build/asan/tmp
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 PYTHONPATH=$(ASAN) PYTHONMALLOC=malloc \
	$(BIN)/pytest tests/unit tests/cases

bench: build
	$(BIN)/python bench/core.py
	$(BIN)/python bench/wire.py

clean:
	rm -rf build $(VENV) *.egg-info
	find pylvs bench -name '*.so' -delete
