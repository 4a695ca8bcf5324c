# cuda.mk: what BACKEND=cuda takes: the parts that find_cuda.sh found (NVCC, GENCODE, CUBLAS, CUDART,
# CUDNN, NCCL ...), how files are compiled with them, and how programs find the libraries when they run.
# Links neither libcuda nor libnvidia-ml: a machine without a driver builds all the same.

ifneq ($(SANITIZE),0)
$(error SANITIZE=$(SANITIZE) is for BACKEND=cpu and emu; on a GPU, make gpu-check runs compute-sanitizer)
endif
$(call find,cuda)

# kernels a fifth as large in the file; drivers of CUDA 12 may not be able to read that
COMPRESS := $(if $(filter-out 12.%,$(NVCC_VERSION)),--compress-mode=size)
NVCC_FLAGS = -std=c++17 -O3 -lineinfo $(COMPRESS) $(GENCODE) $(if $(filter 1,$(WERROR)),--Werror all-warnings) \
	-Xcompiler -Wall,-Wextra $(if $(filter-out default,$(origin CXX)),-ccbin $(CXX)) \
	$(DEFINES) -I. -Ilaser/cuda/nvcc $(patsubst %,-isystem %,$(CUDA_INCLUDES) $(NCCL_INCLUDE)) -MMD -MP -MF $(@:.o=.d)
DEVICE_cuda = $(NVCC) -x cu $(NVCC_FLAGS)
MAIN_cuda = $(DEVICE_cuda)
# files of laser/cuda without kernels; cuDNN's headers come from others
HOST_cuda = $(CXX) $(CXX_FLAGS) -Ilaser/cuda/nvcc $(patsubst %,-isystem %,$(CUDA_INCLUDES) $(CUDNN_INCLUDES))
LINK_cuda = $(CXX)
# where the libraries were found, and where a carried program may have them
RUN_PATHS := $(filter-out /lib/% /usr/lib/%,$(sort $(patsubst %/,%,$(dir $(CUBLAS) $(CUDNN_LIBRARY) $(NCCL_LIBRARY))) \
	/usr/local/cuda/lib64))
LIBS_cuda = $(CUBLAS) $(CUDNN_LIBRARY) $(NCCL_LIBRARY) $(CUDART) $(RUN_PATHS:%=-Wl,-rpath,%) '-Wl,-rpath,$$ORIGIN/../lib' -ldl -lrt
FEATURES_cuda := cudnn$(CUDNN) sm$(GPU_ARCH)

SUMMARY_cuda = CUDNN=$(CUDNN) NCCL=$(NCCL) GPU_ARCH='$(GPU_ARCH)', nvcc $(NVCC_VERSION),
SAY_cuda = $(if $(MISSING),$(error BACKEND=cuda: $(MISSING). BACKEND=cpu needs no CUDA))$(info \
	nvcc $(NVCC_VERSION) is $(NVCC), cublasLt $(CUBLAS_VERSION) is $(CUBLAS))$(info \
	GPU_ARCH=$(GPU_ARCH): $(GPU_ARCH_WHY))$(info CUDNN=$(CUDNN): $(CUDNN_WHY))$(info \
	NCCL=$(NCCL): $(NCCL_WHY))

# objects of another nvcc are not mixed in
STAMP_cuda := build/nvcc_version
build/nvcc_version: FORCE
	$(call keep,$(NVCC) $(NVCC_VERSION))
