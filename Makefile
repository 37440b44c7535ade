# Thin: each target checks the packages it needs, then calls a script in .ci/. See `make help`.

SEEDS ?= 1
METHODS ?=
DATA ?=
FULL ?=
PARTS ?=

.PHONY: help deps demo tune test bench test-gpu bench-gpu docs format tidy clean
help:
	@echo 'make demo    fine-tune a small Vision Transformer with LoRA and print the table (SEEDS=3 METHODS=lora,full DATA=DIR)'
	@echo 'make test    every test, in parts (PARTS="unit headers" for some; JOBS=N compilers at a time)'
	@echo 'make bench   adapters against the frozen linear, into build/bench (FULL=1: all ranks, threads and BLAS)'
	@echo 'make test-gpu, make bench-gpu    the same for Cuda on the card of this machine (needs nvcc)'
	@echo 'make tune    find the learning rates that the demo uses (long)'
	@echo 'make deps    check the packages, and install what is missing (as root, in CI, or DELTAW_DEPS=install)'
	@echo 'make docs    check the links of the pages; with doxygen, write the reference into build/docs'
	@echo 'make format  clang-format every source; make tidy runs clang-tidy over every header'
	@echo 'make clean   remove build/'

deps:
	@.ci/deps test

demo:
	@.ci/deps demo
	@SEEDS='$(SEEDS)' METHODS='$(METHODS)' DATA='$(DATA)' .ci/demo

tune: SEEDS = 3
tune:
	@.ci/deps demo
	@SEEDS='$(SEEDS)' METHODS='$(METHODS)' DATA='$(DATA)' .ci/demo --tune

test:
	@.ci/deps test
	@.ci/test $(PARTS)

bench:
	@.ci/deps bench
	@FULL='$(FULL)' .ci/bench

test-gpu:
	@.ci/test-gpu

bench-gpu:
	@.ci/bench-gpu

docs:
	@.ci/deps test
	@.ci/docs --reference

format:
	@.ci/deps test
	@.ci/format

tidy:
	@.ci/deps test
	@.ci/tidy

clean:
	rm -rf build
