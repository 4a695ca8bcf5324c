# Builds both trainers from the same sources; `make help` lists targets and variables.
# Objects of each configuration live in build/<configuration>/, so switching never links stale ones.
# What a CUDA build needs is found by dev/make/find_cuda.sh; what was chosen, and why, is printed.

.DEFAULT_GOAL := all

ATTN ?= both
BLAS ?= none
# Open MPI, whose compiler wrapper tells its flags
MPI ?= $(if $(shell mpicc --showme:version 2>/dev/null),1,0)
SANITIZE ?= 0
ARCH ?= native
WERROR ?= 1
TEXT ?=

# ---- the machine below the seam -----------------------------------------------------------------------------
# $(call find,WHAT): takes over NAME=value lines, ~ for a blank
find = $(foreach line,$(shell NVCC='$(NVCC)' CUDA_HOME='$(CUDA_HOME)' GPU_ARCH='$(GPU_ARCH)' CUDNN='$(CUDNN)' NCCL='$(NCCL)' \
	PRECISION='$(PRECISION)' CC='$(CC)' dev/make/find_cuda.sh $1),$(eval override $(subst ~, ,$(line))))
BACKEND_WHY := as asked
ifeq ($(BACKEND),)
$(call find,backend)
endif
PRECISION ?= $(if $(filter cpu,$(BACKEND)),fp32,bf16)

# ---- unknown values stop here -------------------------------------------------------------------------------
# $(call one_of,NAME,known values)
one_of = $(if $(filter-out $2,$($1))$(if $($1),,x),$(error $1='$($1)' is not known; choose one of: $2))
$(call one_of,BACKEND,cpu cuda emu)
$(call one_of,ATTN,laser standard both)
$(call one_of,PRECISION,fp32 bf16)
$(call one_of,BLAS,none openblas)
$(call one_of,MPI,0 1)
$(call one_of,SANITIZE,0 1 thread)
$(call one_of,WERROR,0 1)
$(if $(CUDNN),$(call one_of,CUDNN,0 1))
$(if $(NCCL),$(call one_of,NCCL,0 1))
ifeq ($(BACKEND)-$(NCCL),cpu-1)
$(error NCCL=1 is for GPUs: BACKEND=cuda, or emu, where a twin stands in for it)
endif
ifeq ($(BACKEND)-$(PRECISION),cpu-bf16)
$(error PRECISION=bf16 is not there for BACKEND=cpu; choose PRECISION=fp32, or BACKEND=cuda or emu)
endif
ifeq ($(BACKEND),cuda)
include dev/make/cuda.mk
endif
NCCL ?= 0
VARIANTS := $(if $(filter both,$(ATTN)),laser standard,$(ATTN))

# ---- flags ----------------------------------------------------------------------------------------------------
WARNINGS := -Wall -Wextra -Wshadow -Wconversion $(if $(filter 1,$(WERROR)),-Werror)
OPTIMIZE := -O3 -march=$(ARCH) -ffp-contract=fast -fno-math-errno -fno-trapping-math
OPENMP := -fopenmp
INSTRUMENT :=
ifeq ($(SANITIZE),1)
INSTRUMENT := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
OPTIMIZE := -O1 -march=$(ARCH) -ffp-contract=fast -fno-math-errno -fno-trapping-math
endif
INSTRUMENT_KERNELS :=
ifeq ($(BACKEND)-$(SANITIZE),emu-thread) # the emulator stands in for the sanitizer's library
INSTRUMENT := -g
INSTRUMENT_KERNELS := -fsanitize=thread
else ifeq ($(SANITIZE),thread) # libgomp is not instrumented: its barriers would look like races
INSTRUMENT := -fsanitize=thread -g
OPTIMIZE := -O1 -march=$(ARCH) -ffp-contract=fast
OPENMP := -Wno-unknown-pragmas
endif
DEFINES := -D_GNU_SOURCE $(if $(filter bf16,$(PRECISION)),-DLASER_BF16)
COMMON := $(WARNINGS) $(OPTIMIZE) $(OPENMP) $(INSTRUMENT) $(DEFINES) -I. -MMD -MP
C_FLAGS := -std=c11 $(COMMON) $(CFLAGS)
CXX_FLAGS := -std=c++17 $(COMMON) $(CXXFLAGS)
MPI_COMPILE := $(if $(filter 1,$(MPI)),$(shell mpicc --showme:compile))
MPI_LINK := $(if $(filter 1,$(MPI)),$(shell mpicc --showme:link))

# How files with kernels, and tests of them, are compiled; how programs are linked, and with what
DEVICE_emu = $(CXX) -x c++ -Idev/emu/include $(CXX_FLAGS) -Wno-unknown-pragmas $(if $(filter-out 1,$(SANITIZE)),-O2) \
	$(if $(filter dev/emu/%,$<),,$(INSTRUMENT_KERNELS))
MAIN_cpu = $(CC) -x c $(C_FLAGS)
MAIN_emu = $(MAIN_cpu)
LINK_cpu = $(CC)
LINK_emu = $(CXX)
LINK_cuda = $(CXX)
LIBS_cpu := $(if $(filter openblas,$(BLAS)),-lopenblas)
LINK = $(LINK_$(BACKEND)) $(OPENMP) $(INSTRUMENT) $(LDFLAGS)
LIBS = $(LIBS_$(BACKEND)) $(MPI_LINK) -lcjson -lpthread -lm

# ---- sources: a build choice is a choice of files ------------------------------------------------------------
GEMM_openblas := laser/cpu/gemm_cblas.c
GEMM_none := laser/cpu/gemm_native.c
# who the processes are, by MPI and NCCL; what moves in the backend's memory, by NCCL
COMM_00 := laser/comm_single.c
COMM_01 := laser/comm_env.c laser/meet.c
COMM_10 := laser/comm_mpi.c
COMM_11 := laser/comm_mpi.c
COMM_DEVICE_0 := laser/comm_host.c
COMM_DEVICE_1 := laser/cuda/comm_nccl.cu
COMM := $(COMM_$(MPI)$(NCCL)) $(COMM_DEVICE_$(NCCL))
CUDNN_0 := laser/cuda/attention_nocudnn.cu
CUDNN_1 := laser/cuda/attention_cudnn.cc
CUDA_FILES := $(filter-out $(CUDNN_0) $(COMM_DEVICE_1),$(wildcard laser/cuda/*.cu))
SOURCES_cpu := $(filter-out laser/cpu/gemm_%,$(wildcard laser/cpu/*.c)) $(GEMM_$(BLAS))
SOURCES_cuda := $(CUDA_FILES) $(CUDNN_$(CUDNN))
SOURCES_emu := $(CUDA_FILES) $(CUDNN_0) $(wildcard dev/emu/*.S) \
	$(filter-out $(if $(filter 0,$(NCCL)),dev/emu/nccl_%),$(wildcard dev/emu/*.cc))
DATA_SOURCES := $(addprefix dataloader/,shard.c loader.c manifest.c manifest_totals.c vocab.c encode.c)
CORE_SOURCES := $(filter-out laser/comm_% $(COMM_01),$(wildcard laser/*.c)) $(COMM) $(SOURCES_$(BACKEND)) $(DATA_SOURCES)
TESTS_emu := $(wildcard dev/test/*.cc)
TESTS_cuda := $(filter-out dev/test/test_emu%.cc,$(TESTS_emu))
TEST_SOURCES := test_gpt.c $(filter-out dev/test/groups_%,$(wildcard dev/test/*.c)) dev/test/groups_$(BACKEND).c \
	$(TESTS_$(BACKEND)) $(wildcard dev/ref/*.c)
# Operations are timed by wrappers where they have run when they return
BENCH_SOURCES := dev/bench/median.c dev/ref/rounded.c dev/bench/op_times$(if $(filter-out cpu,$(BACKEND)),_none).c
WRAP_cpu := @dev/bench/op_times.link
# Files that know which attention is built: their objects are not shared
VARIANT_FILES := laser/cpu/attention% laser/cpu/backend.c laser/cuda/laser% laser/cuda/backend.cu dev/test/%.cc \
	$(filter-out %cudnn.cu %cudnn.cc,$(wildcard laser/cuda/attention*))

FEATURES_cpu := $(BLAS)
CONFIG := $(strip $(BACKEND) $(PRECISION) $(FEATURES_$(BACKEND)) $(filter-out native,$(ARCH)) \
	$(patsubst %,san%,$(filter-out 0,$(SANITIZE))) $(filter-out cc,$(notdir $(CC))))
OUT := build/$(subst $(eval) ,-,$(CONFIG))
# Programs lie apart by how their processes meet: their other objects are the same
PLACE := $(OUT)-mpi$(MPI)$(if $(filter 1,$(NCCL)),-nccl)
# $(call objects,laser|standard,sources)
objects = $(patsubst %,$(OUT)-$1/%.o,$(filter $(VARIANT_FILES),$2)) $(patsubst %,$(OUT)/%.o,$(filter-out $(VARIANT_FILES),$2))

TRAINERS := $(VARIANTS:%=train_gpt_%)
TESTERS := $(VARIANTS:%=$(PLACE)-%/test_gpt)

.PHONY: all config tools test check check_cpu check_cuda check_emu testers print_testers nccl_programs gpu_nccl \
	quickstart bench bench-loader bench-numerics bench-processes bench-comm gpu-binaries gpu_archive gpu-check lint \
	help clean FORCE
all: config $(TRAINERS)
	@echo "built $(TRAINERS): $(SUMMARY)"
SUMMARY = BACKEND=$(BACKEND) PRECISION=$(PRECISION) $(SUMMARY_$(BACKEND)) MPI=$(MPI)$(if $(filter-out 0,$(SANITIZE)), \
	SANITIZE=$(SANITIZE)), $(CC) for $(ARCH)
SUMMARY_cpu = BLAS=$(BLAS)
SUMMARY_emu = NCCL=$(NCCL)

# Says what was chosen, and stops where a part is missing, before anything is compiled.
config:
	@$(info BACKEND=$(BACKEND): $(BACKEND_WHY))$(SAY_$(BACKEND)):
# ---- the trainers ---------------------------------------------------------------------------------------------
# The top level holds a copy of the last built configuration; it is replaced by renaming, so that a
# run that is under way keeps its own.
$(TRAINERS): train_gpt_%: $(PLACE)-%/train_gpt FORCE
	@cmp -s $< $@ || { cp $< $@.tmp && mv -f $@.tmp $@; }

# $(call OBJECT_RULES,folder,what its files are told of the attention)
define OBJECT_RULES
$1/%.c.o: %.c | config
	@mkdir -p $$(@D)
	$$(CC) $$(C_FLAGS) $$(EXTRA) $2 -c -o $$@ $$<
$1/%.S.o: %.S | config
	@mkdir -p $$(@D)
	$$(CC) $$(INSTRUMENT) -c -o $$@ $$<
$1/%.cu.o: %.cu $(STAMP_$(BACKEND)) | config
	@mkdir -p $$(@D)
	$$(DEVICE_$(BACKEND)) $2 -c -o $$@ $$<
$1/%.cc.o: %.cc $(STAMP_$(BACKEND)) | config
	@mkdir -p $$(@D)
	$$(DEVICE_$(BACKEND)) $2 -c -o $$@ $$<
$1/laser/cuda/%.cc.o: laser/cuda/%.cc $(STAMP_$(BACKEND)) | config
	@mkdir -p $$(@D)
	$$(HOST_$(BACKEND)) $2 -c -o $$@ $$<
endef
define VARIANT_RULES
$(PLACE)-$1/train_gpt: $(call objects,$1,train_gpt_laser.cu $(CORE_SOURCES))
	@mkdir -p $$(@D)
	$$(LINK) -o $$@ $$^ $$(LIBS)
$(PLACE)-$1/test_gpt: $(call objects,$1,$(TEST_SOURCES) $(CORE_SOURCES))
	@mkdir -p $$(@D)
	$$(LINK) -o $$@ $$^ $$(LIBS)
$(PLACE)-$1/bench_%: $(OUT)/dev/bench/bench_%.c.o $(call objects,$1,$(BENCH_SOURCES) $(CORE_SOURCES))
	@mkdir -p $$(@D)
	$$(LINK) $(WRAP_$(BACKEND)) -o $$@ $$^ $$(LIBS)
$(call OBJECT_RULES,$(OUT)-$1,-DLASER_ATTENTION=$(if $(filter laser,$1),1,0))
endef
$(eval $(call OBJECT_RULES,$(OUT)))
$(foreach v,laser standard,$(eval $(call VARIANT_RULES,$v)))
$(OUT)/train_gpt_laser.cu.o: train_gpt_laser.cu $(STAMP_$(BACKEND)) | config
	@mkdir -p $(@D)
	$(MAIN_$(BACKEND)) -c -o $@ $<
$(OUT)/laser/comm_mpi.c.o: EXTRA = $(MPI_COMPILE)
$(OUT)/laser/version.c.o: EXTRA = -DLASER_REVISION='"$(REVISION)"'
$(OUT)/laser/version.c.o: build/revision

REVISION = $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# $(call keep,TEXT): the target holds it, and is as old as its last change
keep = @mkdir -p $(@D); echo '$1' | cmp -s - $@ || echo '$1' > $@
build/revision: FORCE
	$(call keep,$(REVISION))
# ---- data tools: the only programs that need libsentencepiece and zlib -------------------------------------------
TOOLS := build/bin/c4_tokenize build/bin/shard_tool
tools: $(TOOLS)
TOOL_OUT := build/tools
# $(call tool_objects,SOURCES)
tool_objects = $(patsubst %,$(TOOL_OUT)/%.o,$1 dataloader/shard.c laser/base.c laser/rng.c)
TOKENIZER_OBJECTS := $(call tool_objects,$(filter-out dataloader/c4_tokenize.cc,$(wildcard dataloader/*.cc)) laser/json.c)
TOKENIZER_LIBS := -lsentencepiece_train -lsentencepiece -lz -lcjson -lcrypto -lpthread
build/bin/c4_tokenize: $(TOOL_OUT)/dataloader/c4_tokenize.cc.o $(TOKENIZER_OBJECTS)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) -o $@ $^ $(TOKENIZER_LIBS)
build/bin/bench_tokenize: $(TOOL_OUT)/dev/bench/bench_tokenize.cc.o $(TOKENIZER_OBJECTS) build/bin/c4_tokenize
	$(CXX) $(LDFLAGS) -o $@ $(filter %.o,$^) $(TOKENIZER_LIBS)
build/bin/shard_tool: $(call tool_objects,$(addprefix dataloader/,shard_tool.c manifest.c vocab.c))
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ -lcjson -lm
TOOL_FLAGS := $(WARNINGS) -O2 -D_GNU_SOURCE -I. -MMD -MP
$(TOOL_OUT)/%.c.o: %.c
	@mkdir -p $(@D)
	$(CC) -std=c11 $(TOOL_FLAGS) $(CFLAGS) -c -o $@ $<
$(TOOL_OUT)/%.cc.o: %.cc
	@mkdir -p $(@D)
	$(CXX) -std=c++17 $(TOOL_FLAGS) $(CXXFLAGS) -c -o $@ $<

# ---- the README's two commands ---------------------------------------------------------------------------------
SETUP_cuda := gpu
quickstart:
	@scripts/setup.sh build quickstart $(SETUP_$(BACKEND))
	@$(MAKE) --no-print-directory all tools
	@TEXT='$(TEXT)' scripts/quickstart.sh

test:
	@scripts/setup.sh build test $(SETUP_$(BACKEND))
	@$(MAKE) --no-print-directory check

check: config check_$(BACKEND)

check_cpu: $(TRAINERS) $(TESTERS) $(TOOLS)
	@dev/test/run.sh $(TESTERS)

check_cuda: $(TRAINERS) $(TESTERS) $(TOOLS)
	@nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || { echo "error: these tests need a GPU, and nvidia-smi -L lists none;" \
		"make test BACKEND=emu runs the kernels without one" >&2; exit 1; }
	@dev/test/run.sh $(TESTERS)

include dev/make/kernels.mk

lint:
	@dev/lint/lint.sh

bench: $(VARIANTS:%=$(PLACE)-%/bench_train)
	@dev/bench/bench.sh $(PLACE)

bench-numerics: $(foreach v,laser standard,$(PLACE)-$v/train_gpt $(PLACE)-$v/bench_numerics)
	@dev/bench/numerics.sh $(PLACE)

bench-processes: $(PLACE)-$(firstword $(VARIANTS))/train_gpt
	@dev/bench/processes.sh $<

bench-loader: $(PLACE)-$(firstword $(VARIANTS))/bench_loader
	@$<

bench-comm: $(PLACE)-$(firstword $(VARIANTS))/bench_comm
	@$(if $(filter 0-1,$(MPI)-$(NCCL)),dev/bench/bench_comm.sh $<,echo "built $<: start one for each GPU with mpirun")

help:
	@echo 'Targets'
	@echo '  all         train_gpt_laser and train_gpt_standard (default)'
	@echo '  config      says what was chosen, and why'
	@echo '  quickstart  install what is missing, get text, train both attentions, compare (TEXT=file: your text)'
	@echo '  test        install what is missing, build, run every test'
	@echo '  check       build and run every test, install nothing'
	@echo '  tools       c4_tokenize and shard_tool, in build/bin'
	@echo '  bench       speed against the machine'"'"'s sgemm, llm.c and PyTorch where they are there'
	@echo '  bench-processes  2 processes x half the cores against 1 x all, and what the layer between them costs'
	@echo '  bench-loader  tokens a second out of the page cache, and how soon 10,000 shards are open'
	@echo '  bench-numerics  the error of attention in bfloat16, of small models trained for it (DATA= shards)'
	@echo '  bench-comm  whether what GPUs send each other is right, and how fast (MPI=0 NCCL=1; two GPUs or more)'
	@echo '  gpu-check   build for the GPU, and run there: tests, compute-sanitizer, speed; one report'
	@echo '  gpu-binaries  only builds that, in build/gpu; CARRIED=1 with gpu-check: is not built again'
	@echo '  lint        house rules'
	@echo '  clean       remove build/ and the programs'
	@echo 'Variables (value now)'
	@echo '  BACKEND=cpu|cuda|emu         ($(BACKEND): $(BACKEND_WHY))'
	@echo '                               emu: the kernels of cuda, on a CPU, for tests'
	@echo '  ATTN=laser|standard|both     ($(ATTN))'
	@echo '  PRECISION=fp32|bf16          ($(PRECISION))  cpu: fp32 alone'
	@echo '  MPI=0|1                      ($(MPI))  1: several processes, started by mpirun'
	@echo '  NCCL=0|1                     ($(NCCL))  cuda; default: 1 where its header is found. With MPI=0 processes meet by'
	@echo '                               RANK, WORLD_SIZE ..., as torchrun sets them'
	@echo '  BLAS=none|openblas           ($(BLAS))  cpu; none: our own matrix product'
	@echo '  GPU_ARCH=native|90a|"80 90a" ($(GPU_ARCH))  cuda; default: the GPU of this machine, else 80 90a ptx'
	@echo '  CUDNN=0|1                    ($(CUDNN))  cuda; default: 1 where its headers are found'
	@echo '  NVCC= CUDA_HOME=             ($(NVCC))  cuda; where to look first'
	@echo '  SANITIZE=0|1|thread          ($(SANITIZE))  cpu, emu; 1: address and undefined behaviour; thread: races'
	@echo '  ARCH=native|x86-64-v3|...    ($(ARCH))  what -march gets'
	@echo '  CC CXX CFLAGS CXXFLAGS LDFLAGS WERROR=0|1'

clean:
	rm -rf build train_gpt_laser train_gpt_standard

-include $(shell find build -name '*.d' 2>/dev/null)
