# Two commands do everything on a fresh machine with python3, venv and make: `make demo` and `make test`.
PYTHON ?= python3
DEMO   := .venv-demo
TEST   := .venv-test
STAMP  := installed
TRT    := .trt
SOURCES := setup.cfg pyproject.toml $(shell find runtime -type f -not -name '*.pyc' -not -path '*/__pycache__/*')

.PHONY: demo test trt reproduce-tiny lint clean

$(DEMO)/$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check .
	touch $@

$(TEST)/$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable .[dev]
	touch $@

# The main job on the bundled model: no GPU, no download but packages.
demo: $(DEMO)/$(STAMP)
	rm -rf demo-output
	$(DEMO)/bin/python -c "import pathlib, mammo_runtime.phantom as p; p.write_demo_folder(pathlib.Path('demo-output/input'))"
	$(DEMO)/bin/mammo-infer demo-output/input -o demo-output/results
	@echo
	@echo "Open demo-output/results/report.html in a browser."

# The real TensorRT parser and builder for tests, without a GPU: TensorRT-RTX with the interfaces of 11.x and of 10.16, and
# the bindings of four releases (about 500 MB). Tests that need them skip with a reason where there are none.
$(TRT)/$(STAMP): $(TEST)/$(STAMP)
	for version in 1.7.1.116 1.4.0.76; do \
	    $(TEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	        --target $(TRT)/rtx-$${version%.*.*} tensorrt-rtx-cu13==$$version || echo "TensorRT-RTX $$version: not for this machine"; \
	done
	for package in cu12-bindings==10.3.0 cu12-bindings==10.13.3.9 cu12-bindings==10.16.1.11 cu13-bindings==11.4.0.106; do \
	    version=$${package##*=}; \
	    $(TEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	        --target $(TRT)/bindings-$$(echo $$version | cut -d. -f1,2) tensorrt-$$package || echo "TensorRT $$version: not for this machine"; \
	done
	touch $@

trt: $(TRT)/$(STAMP)

test: $(TEST)/$(STAMP) $(TRT)/$(STAMP)
	OMP_NUM_THREADS=1 $(TEST)/bin/python -m pytest -n 2 --dist loadfile

# Every published system from training to mammo-infer: tiny networks on synthetic phantoms, a few minutes.
reproduce-tiny: $(TEST)/$(STAMP)
	rm -rf reproduce-tiny-output
	$(TEST)/bin/mammo-train reproduce all --budget 2 --tiny -o reproduce-tiny-output --quiet

# Lint, types and the import contracts that keep the rooms apart.
lint: $(TEST)/$(STAMP)
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy runtime/mammo_runtime
	$(TEST)/bin/mypy train/mammo_train export/mammo_export
	$(TEST)/bin/lint-imports --config setup.cfg

clean:
	rm -rf $(DEMO) $(TEST) $(TRT) demo-output reproduce-tiny-output build *.egg-info .venv-py*
