# kernels.mk: the kernels of laser/cuda put to the test, by the emulator (make check BACKEND=emu) and
# on a GPU (make gpu-check).

# Without a GPU: both types, both attentions, several orders of the threads, sanitizers. What is
# asked for by name is not varied.
PARALLEL = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))
EMU_MAKE = $(MAKE) --no-print-directory -s BACKEND=emu
EMU_PRECISIONS := $(if $(filter file,$(origin PRECISION)),bf16 fp32,$(PRECISION))
EMU_SANITIZE := $(if $(filter file,$(origin SANITIZE)),1 thread 0,$(SANITIZE))
# races are looked for in one type: barriers do not depend on it
EMU_PAIRS := $(foreach p,$(EMU_PRECISIONS),$(foreach s,$(EMU_SANITIZE),$p/$s))
EMU_CONFIGS := $(foreach c,$(if $(filter bf16/thread,$(EMU_PAIRS)),$(filter-out fp32/thread,$(EMU_PAIRS)),$(EMU_PAIRS)), \
	"PRECISION=$(subst /, SANITIZE=,$c)")
check_emu:
	@set -e; for config in $(EMU_CONFIGS); do $(EMU_MAKE) $(PARALLEL) testers $$config; done
	$(if $(filter bf16/0,$(EMU_PAIRS)),@set -e; for mpi in 0 $(filter 1,$(MPI)); do \
		$(EMU_MAKE) $(PARALLEL) nccl_programs PRECISION=bf16 SANITIZE=0 ATTN=laser NCCL=1 MPI=$$mpi; done)
	@dev/emu/check.sh $$(for config in $(EMU_CONFIGS); do $(EMU_MAKE) print_testers $$config; done)
testers: $(TESTERS) $(TESTERS:test_gpt=train_gpt)
# beside the trainer that is tested, for dev/test/system_nccl.py
nccl_programs: $(foreach v,$(VARIANTS),$(PLACE)-$v/train_gpt $(PLACE)-$v/bench_comm)
print_testers:
	@echo $(TESTERS)

# All that dev/bench/gpu_check.sh runs, also for carrying to a machine without nvcc:
# build/gpu/PRECISION-ATTENTION/{train_gpt,test_gpt,bench_*}; trainers for the CPU, to compare with, in
# build/gpu/cpu-fp32-ATTENTION; with NCCL build/gpu/nccl-bf16-laser/{train_gpt,bench_comm}; shard_tool; and in lib/ the libraries they need but for NVIDIA's.
GPU := build/gpu
GPU_BINARIES := train_gpt $(if $(filter cuda,$(BACKEND)),test_gpt $(patsubst dev/bench/%.c,%,$(wildcard dev/bench/bench_*.c)))
GPU_PLACE := $(GPU)/$(if $(filter cpu,$(BACKEND)),cpu-)$(PRECISION)
GPU_HOST := $(if $(filter x86_64,$(shell uname -m)),x86-64-v3,native)
GPU_MAKE = $(MAKE) --no-print-directory $(PARALLEL) gpu_programs MPI=0 NCCL=0 ATTN=both ARCH=$(GPU_HOST)
gpu-binaries: build/bin/shard_tool
	@$(GPU_MAKE) BACKEND=cuda PRECISION=bf16
	@$(GPU_MAKE) BACKEND=cuda PRECISION=fp32
	@! dev/make/find_cuda.sh cuda | grep '^NCCL=1' >/dev/null || $(MAKE) --no-print-directory $(PARALLEL) gpu_nccl \
		BACKEND=cuda PRECISION=bf16 MPI=0 NCCL=1 ATTN=laser ARCH=$(GPU_HOST)
	@$(GPU_MAKE) BACKEND=cpu PRECISION=fp32 BLAS=none SANITIZE=0
	@mkdir -p $(GPU)/lib && cp $< $(GPU)
	@ldd $(GPU)/*/test_gpt | sed -n 's/.*=> \(.*lib\(cjson\|gomp\|stdc++\|gcc_s\)\.so[^ ]*\) .*/\1/p' | sort -u | \
		xargs -I FILE cp -L FILE $(GPU)/lib
	@echo "built $(GPU), $$(du -sh $(GPU) | cut -f 1): make gpu-check runs it, here or where it is carried"
gpu_programs: $(foreach v,$(VARIANTS),$(GPU_BINARIES:%=$(PLACE)-$v/%))
	@set -e; $(foreach v,$(VARIANTS),mkdir -p $(GPU_PLACE)-$v; \
		install -s $(GPU_BINARIES:%=$(PLACE)-$v/%) $(GPU_PLACE)-$v;)

# the same objects but for what moves data between processes
gpu_nccl: nccl_programs
	@mkdir -p $(GPU)/nccl-$(PRECISION)-laser
	@install -s $(PLACE)-laser/train_gpt $(PLACE)-laser/bench_comm $(GPU)/nccl-$(PRECISION)-laser

# CARRIED=1: build/gpu as it is
CARRIED = $(if $(shell dev/make/find_cuda.sh cuda | grep '^NVCC='),0,1)
CARRIED_THERE = [ -d $(GPU) ] || { echo "error: no nvcc to build with, and no $(GPU) that was carried here:" \
	"make gpu-binaries makes it where nvcc is" >&2; exit 1; }
gpu-check:
	@$(if $(filter 1,$(CARRIED)),$(CARRIED_THERE),$(MAKE) --no-print-directory gpu-binaries)
	@dev/bench/gpu_check.sh $(GPU)
