# Builds both trainers from the same sources; `make help` lists targets and variables.
# Objects of each configuration live in build/<configuration>/, so switching never links stale ones.

BACKEND ?= cpu
ATTN ?= both
PRECISION ?= fp32
BLAS ?= none
# Open MPI, whose compiler wrapper tells its flags
MPI ?= $(if $(shell mpicc --showme:version 2>/dev/null),1,0)
SANITIZE ?= 0
ARCH ?= native
WERROR ?= 1
TEXT ?=

# ---- unknown values stop here -------------------------------------------------------------------------------
# $(call one_of,NAME,known values)
one_of = $(if $(filter-out $2,$($1))$(if $($1),,x),$(error $1='$($1)' is not known; choose one of: $2))
$(call one_of,BACKEND,cpu)
$(call one_of,ATTN,laser standard both)
$(call one_of,PRECISION,fp32)
$(call one_of,BLAS,none openblas)
$(call one_of,MPI,0 1)
$(call one_of,SANITIZE,0 1 thread)
$(call one_of,WERROR,0 1)
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
ifeq ($(SANITIZE),thread) # libgomp is not instrumented: its barriers would look like races
INSTRUMENT := -fsanitize=thread -g
OPTIMIZE := -O1 -march=$(ARCH) -ffp-contract=fast
OPENMP := -Wno-unknown-pragmas
endif
COMMON := $(WARNINGS) $(OPTIMIZE) $(OPENMP) $(INSTRUMENT) -D_GNU_SOURCE -I. -MMD -MP
C_FLAGS := -std=c11 $(COMMON) $(CFLAGS)
CXX_FLAGS := -std=c++17 $(COMMON) $(CXXFLAGS)
LIBS := -lcjson -lpthread -lm
LIBS_openblas := -lopenblas
MPI_COMPILE := $(if $(filter 1,$(MPI)),$(shell mpicc --showme:compile))
MPI_LINK := $(if $(filter 1,$(MPI)),$(shell mpicc --showme:link))
LINK = $(CC) $(OPENMP) $(INSTRUMENT) $(LDFLAGS)

# ---- sources: a build choice is a choice of files ------------------------------------------------------------
GEMM_openblas := laser/cpu/gemm_cblas.c
GEMM_none := laser/cpu/gemm_native.c
COMM_0 := laser/cpu/comm_single.c
COMM_1 := laser/cpu/comm_mpi.c
CPU_SOURCES := $(filter-out laser/cpu/gemm_% laser/cpu/comm_%,$(wildcard laser/cpu/*.c)) $(GEMM_$(BLAS)) $(COMM_$(MPI))
DATA_SOURCES := dataloader/shard.c dataloader/loader.c dataloader/vocab.c
CORE_SOURCES := $(wildcard laser/*.c) $(CPU_SOURCES) $(DATA_SOURCES)
TEST_SOURCES := test_gpt.c $(wildcard dev/test/*.c) $(wildcard dev/ref/*.c)

CONFIG := $(BACKEND)-$(PRECISION)-$(BLAS)-mpi$(MPI)$(if $(filter-out native,$(ARCH)),-$(ARCH))$(if $(filter-out 0,$(SANITIZE)),-san$(SANITIZE))$(if $(filter-out cc,$(notdir $(CC))),-$(notdir $(CC)))
OUT := build/$(CONFIG)
objects = $(patsubst %,$(OUT)-$1/%.o,$2)

TRAINERS := $(VARIANTS:%=train_gpt_%)
TESTERS := $(VARIANTS:%=$(OUT)-%/test_gpt)

.PHONY: all tools test check quickstart bench lint help clean FORCE
all: $(TRAINERS)
	@echo "built $(TRAINERS): BACKEND=$(BACKEND) PRECISION=$(PRECISION) BLAS=$(BLAS) MPI=$(MPI)$(if $(filter-out 0,$(SANITIZE)), SANITIZE=$(SANITIZE)), $(CC) for $(ARCH)"

# ---- the trainers ---------------------------------------------------------------------------------------------
# The top level holds a copy of the last built configuration; it is replaced by renaming, so that a
# run that is under way keeps its own.
$(TRAINERS): train_gpt_%: $(OUT)-%/train_gpt FORCE
	@cmp -s $< $@ || { cp $< $@.tmp && mv -f $@.tmp $@; }

define VARIANT_RULES
$(OUT)-$1/train_gpt: $(call objects,$1,train_gpt_laser.cu $(CORE_SOURCES))
	$$(LINK) -o $$@ $$^ $$(LIBS_$(BLAS)) $$(MPI_LINK) $$(LIBS)
$(OUT)-$1/test_gpt: $(call objects,$1,$(TEST_SOURCES) $(CORE_SOURCES))
	$$(LINK) -o $$@ $$^ $$(LIBS_$(BLAS)) $$(MPI_LINK) $$(LIBS)
$(OUT)-$1/bench_%: $(OUT)-$1/dev/bench/bench_%.c.o $(call objects,$1,dev/bench/op_times.c $(CORE_SOURCES))
	$$(LINK) @dev/bench/op_times.link -o $$@ $$^ $$(LIBS_$(BLAS)) $$(MPI_LINK) $$(LIBS)
$(OUT)-$1/%.c.o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(C_FLAGS) $$(EXTRA) -DLASER_ATTENTION=$(if $(filter laser,$1),1,0) -c -o $$@ $$<
$(OUT)-$1/%.cu.o: %.cu
	@mkdir -p $$(@D)
	$$(CC) -x c $$(C_FLAGS) -DLASER_ATTENTION=$(if $(filter laser,$1),1,0) -c -o $$@ $$<
$(OUT)-$1/laser/cpu/comm_mpi.c.o: EXTRA = $$(MPI_COMPILE)
$(OUT)-$1/laser/version.c.o: EXTRA = -DLASER_REVISION='"$$(REVISION)"'
$(OUT)-$1/laser/version.c.o: build/revision
endef
$(foreach v,laser standard,$(eval $(call VARIANT_RULES,$v)))

REVISION = $(shell git describe --always --dirty 2>/dev/null || echo unknown)
build/revision: FORCE
	@mkdir -p build
	@echo '$(REVISION)' | cmp -s - $@ || echo '$(REVISION)' > $@

# ---- data tools: the only programs that need libsentencepiece and zlib -------------------------------------------
TOOLS := build/bin/c4_tokenize build/bin/shard_tool
tools: $(TOOLS)
TOOL_OUT := build/tools
build/bin/c4_tokenize: $(patsubst %,$(TOOL_OUT)/%.o,$(wildcard dataloader/*.cc) dataloader/shard.c laser/base.c laser/rng.c)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) -o $@ $^ -lsentencepiece_train -lsentencepiece -lz -lcjson
build/bin/shard_tool: $(patsubst %,$(TOOL_OUT)/%.o,dataloader/shard_tool.c dataloader/shard.c dataloader/vocab.c laser/base.c laser/rng.c)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ -lm
$(TOOL_OUT)/%.c.o: %.c
	@mkdir -p $(@D)
	$(CC) -std=c11 $(WARNINGS) -O2 -D_GNU_SOURCE -I. -MMD -MP $(CFLAGS) -c -o $@ $<
$(TOOL_OUT)/%.cc.o: %.cc
	@mkdir -p $(@D)
	$(CXX) -std=c++17 $(WARNINGS) -O2 -D_GNU_SOURCE -I. -MMD -MP $(CXXFLAGS) -c -o $@ $<

# ---- the README's two commands ---------------------------------------------------------------------------------
quickstart:
	@scripts/setup.sh build quickstart
	@$(MAKE) --no-print-directory all tools
	@TEXT='$(TEXT)' scripts/quickstart.sh

test:
	@scripts/setup.sh build test
	@$(MAKE) --no-print-directory check

check: $(TRAINERS) $(TESTERS) $(TOOLS)
	@dev/test/run.sh $(TESTERS)

lint:
	@dev/lint/lint.sh

bench: $(VARIANTS:%=$(OUT)-%/bench_train)
	@dev/bench/bench.sh $(OUT)

help:
	@echo 'Targets'
	@echo '  all         train_gpt_laser and train_gpt_standard (default)'
	@echo '  quickstart  install what is missing, get text, train both attentions, compare (TEXT=file: your text)'
	@echo '  test        install what is missing, build, run every test'
	@echo '  check       build and run every test, install nothing'
	@echo '  tools       c4_tokenize and shard_tool, in build/bin'
	@echo '  bench       speed against the machine'"'"'s sgemm, llm.c and PyTorch where they are there'
	@echo '  lint        house rules'
	@echo '  clean       remove build/ and the programs'
	@echo 'Variables (value now)'
	@echo '  BACKEND=cpu                  ($(BACKEND))'
	@echo '  ATTN=laser|standard|both     ($(ATTN))'
	@echo '  PRECISION=fp32               ($(PRECISION))'
	@echo '  BLAS=none|openblas           ($(BLAS))  none: our own matrix product'
	@echo '  MPI=0|1                      ($(MPI))  1: several processes, started by mpirun'
	@echo '  SANITIZE=0|1|thread          ($(SANITIZE))  1: address and undefined behaviour'
	@echo '  ARCH=native|x86-64-v3|...    ($(ARCH))  what -march gets'
	@echo '  CC CXX CFLAGS CXXFLAGS LDFLAGS WERROR=0|1'

clean:
	rm -rf build train_gpt_laser train_gpt_standard

-include $(shell find build -name '*.d' 2>/dev/null)
