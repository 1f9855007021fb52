# make demo    the whole story on embedded data
# make test    the test suite
# make slow    the tests that take minutes: files made wrong, processes killed
# make browser the report's tests in a browser; needs chromium (Debian: apt-get install chromium)
# make check   format, lint, types, import contracts
# make bench   benchmarks on real networks; FLEXREL_DATA says where they are
# make docs    the documents as pages, in site/
# make notebooks  those of examples/, run again, with what they print
# make wheels  both wheels, in dist/, tried in an empty environment
# Each makes .venv and installs what it needs, once.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROJECT := pyproject.toml edge/pyproject.toml constraints.txt
SOURCES := src edge/src tests benchmarks examples

.PHONY: demo test slow browser check bench docs notebooks wheels clean

demo: $(VENV)/.demo
	$(BIN)/flexrel demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m slow

browser: $(VENV)/.dev $(VENV)/.browser
	$(BIN)/python -m pytest -n 0 -m browser tests/io

check: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/paper.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/accelerator.py
	$(BIN)/python benchmarks/compatibility.py
	$(BIN)/python benchmarks/relevance.py
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/updates.py
	$(BIN)/python benchmarks/link.py
	$(BIN)/python benchmarks/over_time.py
	$(BIN)/python benchmarks/in_use.py
	$(BIN)/python benchmarks/tables.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# They write beside themselves: a folder and a packed file, which git ignores.
notebooks: $(VENV)/.docs
	$(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False \
	    examples/notebooks/digits.ipynb examples/notebooks/text.ipynb

# What pip makes of a checkout keeps files of before in build/.
wheels: $(VENV)/.python
	rm -rf build edge/build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist ./edge .
	python3 -m venv build/empty
	build/empty/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	    "$$(ls dist/flexrel_edge-*.whl)" "$$(ls dist/flexrel-*.whl)[demo]"
	cd build && empty/bin/flexrel demo --out demo
	build/empty/bin/flexrel-edge verify build/demo/model.flexrel

clean:
	rm -rf $(VENV) build edge/build dist site

$(VENV)/.python:
	python3 -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "FlexRel needs Python 3.11 or newer, found " + sys.version.split()[0])'
	python3 -m venv $(VENV)
	touch $@

# Without the oracles some tests are skipped.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.browser $(VENV)/.bench $(VENV)/.docs: $(VENV)/.%: $(VENV)/.python $(PROJECT)
	$(PIP) -e edge -e '.[$*]'
	$(if $(filter dev,$*),-$(PIP) -e edge -e '.[oracles]')
	touch $@
