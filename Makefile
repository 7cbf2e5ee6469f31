# make demo     the main job on a model and data that the repository ships
# make test     the tests
# make lint     ruff, clang-format and mypy
# make install  .venv with onnxq (editable) and the developer tools
# The same as plain commands: see README.md. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint install
.DELETE_ON_ERROR:

demo: .venv/.run
	$(BIN)/onnxq tune models/resnet20.onnx --data models/cifar10/test --calibration-data models/cifar10/calibration \
	  --preprocess cifar --mode static --weights int4:channel,int8:channel --pareto -o runs/demo

test: .venv/.dev
	$(BIN)/python -m pytest -q -n 2

lint: .venv/.dev .venv/.torch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(wildcard runtime_ops/native/*.cc runtime_ops/native/*.h runtime_ops/native/test/*.cc runtime_ops/native/test/*.h)
	$(BIN)/mypy

install: .venv/.dev

# A stamp is touched only after its installation succeeded; a change of the metadata makes it stale.
.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || \
	  { echo "onnxq needs Python 3.10 to 3.14, and '$(PYTHON)' is not; try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python cannot create virtual environments; on Debian or Ubuntu run: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.run: .venv/.python setup.cfg pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

# mypy reads torch's types; the tests of training run where it is installed.
.venv/.torch: .venv/.dev
	.ci/torch $(BIN)/python
	@touch $@

.venv/.dev: .venv/.python setup.cfg pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch .venv/.run $@
