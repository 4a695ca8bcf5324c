#!/bin/sh
# find_cuda.sh: finds what a CUDA build needs, for the Makefile and for people:
#   dev/make/find_cuda.sh backend     BACKEND and BACKEND_WHY: is there a GPU, and nvcc?
#   dev/make/find_cuda.sh cuda        nvcc, architectures, libraries; MISSING: what is not
# Prints NAME=value lines, ~ for a blank, so that make can take them word by word. Reads NVCC,
# CUDA_HOME, GPU_ARCH, CUDNN, NCCL, PRECISION from the environment. Looks in CUDA_HOME, nvcc's own
# toolkit, /usr/local/cuda, Debian's folders, and NVIDIA's Python packages (build/venv, then the
# active Python). Needs no driver and no GPU. Exit code 0 also where things are missing.
set -u
cd "$(dirname "$0")/../.." || exit 2

TOOLKIT="the CUDA toolkit (12.4 to 13.x, https://developer.nvidia.com/cuda-downloads)"
MISSING=""

set_value() { # NAME VALUE
    printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr ' ' '~')"
}

missing() { # TEXT: one sentence, what and how to get it
    MISSING="$MISSING${MISSING:+; }$1"
}

# ---- nvcc -----------------------------------------------------------------------------------

site_packages() {
    for dir in build/venv/lib/python3*/site-packages; do [ -d "$dir" ] && echo "$PWD/$dir"; done
    python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null
}

find_nvcc() { # -> NVCC (empty: none), NVCC_VERSION, TOP (its toolkit)
    asked=${NVCC:-}
    NVCC="" NVCC_VERSION="" TOP=""
    if [ -n "$asked" ]; then
        NVCC=$(command -v "$asked") || missing "NVCC=$asked is not there"
    else
        pip=$(for site in $SITES; do echo "$site"/nvidia/*/bin/nvcc; done)
        for file in "${CUDA_HOME:-/none}/bin/nvcc" "$(command -v nvcc)" /usr/local/cuda/bin/nvcc \
            /usr/lib/nvidia-cuda-toolkit/bin/nvcc $pip; do
            if [ -x "$file" ]; then
                NVCC=$file
                break
            fi
        done
        [ -n "$NVCC" ] || missing "no nvcc: install $TOOLKIT, or set CUDA_HOME to where it is"
    fi
    [ -n "$NVCC" ] || return
    NVCC_VERSION=$("$NVCC" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    TOP=$(dirname "$(dirname "$(readlink -f "$NVCC")")")
    major=${NVCC_VERSION%%.*} minor=${NVCC_VERSION#*.}
    if [ -z "$NVCC_VERSION" ]; then
        missing "$NVCC does not tell its version"
    elif [ "$major" -lt 12 ] || { [ "$major" -eq 12 ] && [ "$minor" -lt 4 ]; }; then
        missing "$NVCC is version $NVCC_VERSION: install $TOOLKIT"
    fi
}

# ---- the GPU of this machine ----------------------------------------------------------------

find_gpu() { # -> GPU (a name, empty: none), GPU_CAPABILITY (such as 90), GPU_WHY (why none)
    GPU="" GPU_CAPABILITY="" GPU_WHY="there is no nvidia-smi"
    command -v nvidia-smi >/dev/null || return
    GPU_WHY="nvidia-smi -L lists no GPU"
    GPU=$(timeout 60 nvidia-smi -L 2>/dev/null | sed -n 's/^GPU [0-9]*: \(.*\) (UUID.*/\1/p' |
        sort | uniq -c | sed 's/^ *\([0-9]*\) /\1 x /; s/^1 x //' | head -n 1)
    [ -n "$GPU" ] || return
    # the lowest of them: a build for it runs on all of the machine's or says that it does not
    GPU_CAPABILITY=$(timeout 60 nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>&1 |
        sed -n 's/^\([0-9]*\)\.\([0-9]\)$/\1\2/p' | sort -n | head -n 1)
}

arch_of() { # CAPABILITY: Hopper's own instructions have a name of their own
    if [ "$1" = 90 ]; then echo 90a; else echo "$1"; fi
}

known() { # ARCH: whether this nvcc compiles for it
    "$NVCC" --list-gpu-code | grep -qx "sm_${1%[af]}"
}

find_arch() { # -> GPU_ARCH, GPU_ARCH_WHY, GENCODE
    asked=$(printf '%s' "${GPU_ARCH:-}" | tr ',' ' ' | sed 's/sm_//g')
    portable="80 90a ptx"
    case $asked in
        "" | native)
            find_gpu
            if [ -n "$GPU_CAPABILITY" ] && known "$GPU_CAPABILITY"; then
                GPU_ARCH=$(arch_of "$GPU_CAPABILITY") GPU_ARCH_WHY="the GPU of this machine, $GPU"
            elif [ -n "$asked" ]; then
                GPU_ARCH="" GPU_ARCH_WHY=""
                missing "GPU_ARCH=native, but ${GPU_CAPABILITY:+nvcc $NVCC_VERSION does not know \
sm_}${GPU_CAPABILITY:-$GPU_WHY}: name the architecture, such as GPU_ARCH=90a"
            elif [ -n "$GPU_CAPABILITY" ]; then
                GPU_ARCH=$portable
                GPU_ARCH_WHY="nvcc $NVCC_VERSION does not know this GPU's sm_$GPU_CAPABILITY; the \
driver compiles the PTX for it"
            else
                GPU_ARCH=$portable
                GPU_ARCH_WHY="no GPU here to go by; Ampere, Hopper, and PTX for what came later"
            fi
            ;;
        *) GPU_ARCH=$asked GPU_ARCH_WHY="as asked" ;;
    esac
    GENCODE="" last=""
    for arch in $GPU_ARCH; do
        if [ "$arch" = ptx ]; then
            number=${last%[af]}
            GENCODE="$GENCODE -gencode arch=compute_$number,code=compute_$number"
        elif known "$arch"; then
            GENCODE="$GENCODE -gencode arch=compute_$arch,code=sm_$arch"
            last=$arch
        else
            missing "GPU_ARCH=$arch: nvcc $NVCC_VERSION knows $("$NVCC" --list-gpu-code |
                sed 's/sm_//' | tr '\n' ' ')(and 90a; ptx behind them adds PTX of the last)"
        fi
    done
}

# ---- libraries ------------------------------------------------------------------------------

roots() { # folders with include/ and lib/ in them, best first
    echo "${CUDA_HOME:-}" "$TOP" /usr/local/cuda
    for site in $SITES; do echo "$site"/nvidia/*; done
}

macro() { # FILE NAME: the number that a header defines
    sed -n "s/^#define $2 \{1,\}\([0-9][0-9]*\).*/\1/p" "$1" 2>/dev/null | head -n 1
}

find_file() { # FOLDERS NAME...: the first that is there
    folders=$1
    shift
    for folder in $folders; do
        for name in "$@"; do
            for file in "$folder"/$name; do
                if [ -e "$file" ]; then
                    echo "$file"
                    return
                fi
            done
        done
    done
}

# A header and the library that goes with it, from the same root. MAJOR: only of that major version
# ("": any), told by the macro VERSION in the header VERSION_FILE.
find_library() { # HEADER LIBRARY VERSION_FILE VERSION MAJOR -> INCLUDE LIBRARY VERSION OTHER
    want_header=$1 want_library=$2 version_file=$3 macro_name=$4 want_major=$5
    INCLUDE="" LIBRARY="" VERSION="" OTHER=""
    multiarch=$(${CC:-cc} -print-multiarch 2>/dev/null)
    for root in $(roots) /usr /usr/local; do
        include=$(find_file "$root/include $root/include/$multiarch $root/targets/*/include" \
            "$want_header")
        library=$(find_file "$root/lib64 $root/lib $root/lib/$multiarch $root/targets/*/lib" \
            "lib$want_library.so" "lib$want_library.so.[0-9]*")
        { [ -n "$include" ] && [ -n "$library" ]; } || continue
        header=$(dirname "$include")/$version_file
        major=$(macro "$header" "${macro_name}_MAJOR")
        patch=$(macro "$header" "${macro_name}_PATCH")$(macro "$header" "${macro_name}_PATCHLEVEL")
        version=$major.$(macro "$header" "${macro_name}_MINOR").$patch
        if [ -n "$want_major" ] && [ "$major" != "$want_major" ]; then
            OTHER="$version in $root"
            continue
        fi
        INCLUDE=$(dirname "$include") LIBRARY=$library VERSION=$version
        return
    done
}

find_cublas() {
    cuda_major=${NVCC_VERSION%%.*}
    find_library cublasLt.h cublasLt cublas_api.h CUBLAS_VER "$cuda_major"
    if [ -z "$LIBRARY" ]; then
        missing "no cublasLt of CUDA $cuda_major with its header${OTHER:+ (there is $OTHER)}: \
install libcublas-dev-$(echo "$NVCC_VERSION" | tr . -) of NVIDIA's repository"
    fi
    CUBLAS=$LIBRARY CUBLAS_VERSION=$VERSION CUBLAS_INCLUDE=$INCLUDE
}

find_cudart() { # the static one where it is there: one thing less to carry
    libs=""
    for root in $(roots); do libs="$libs $root/lib64 $root/lib $root/targets/*/lib"; done
    libs="$libs /usr/lib/$(${CC:-cc} -print-multiarch 2>/dev/null)"
    CUDART=$(find_file "$libs" libcudart_static.a)
    [ -n "$CUDART" ] || CUDART=$(find_file "$libs" libcudart.so libcudart.so.[0-9]*)
    CUDART_INCLUDE=$(for root in $(roots) /usr; do
        find_file "$root/include $root/targets/*/include" cuda_runtime.h
    done | head -n 1)
    CUDART_INCLUDE=${CUDART_INCLUDE%/*}
    if [ -z "$CUDART" ] || [ -z "$CUDART_INCLUDE" ]; then
        missing "no CUDA runtime (cuda_runtime.h, libcudart): install $TOOLKIT"
    fi
}

find_cudnn() { # -> CUDNN, CUDNN_WHY, CUDNN_LIBRARY, CUDNN_INCLUDES
    asked=${CUDNN:-} lacks=""
    CUDNN=0 CUDNN_LIBRARY="" CUDNN_INCLUDES=""
    if [ "$asked" = 0 ]; then
        CUDNN_WHY="as asked"
        return
    fi
    if [ -z "$asked" ] && [ "${PRECISION:-bf16}" = fp32 ]; then
        CUDNN_WHY="cuDNN's attention is for bf16"
        return
    fi
    find_library cudnn.h cudnn cudnn_version.h CUDNN 9
    cuda_major=${NVCC_VERSION%%.*}
    [ -n "$LIBRARY" ] || lacks="no cuDNN 9 with cudnn.h${OTHER:+ (there is $OTHER)}: install \
cudnn9-cuda-$cuda_major of NVIDIA's repository, or pip install nvidia-cudnn-cu$cuda_major"
    frontend=""
    for folder in $(for root in $(roots) /usr /usr/local; do echo "$root/include"; done) \
        $(for site in $SITES; do echo "$site/include"; done); do
        frontend=$(find_file "$folder" cudnn_frontend.h)
        [ -z "$frontend" ] || break
    done
    [ -n "$frontend" ] ||
        lacks="$lacks${lacks:+; }no cudnn_frontend.h: scripts/setup.sh gpu gets it"
    if [ -n "$lacks" ]; then
        CUDNN_WHY=$lacks
        [ -z "$asked" ] || missing "CUDNN=1, but $lacks"
        return
    fi
    header=${frontend%/*}/cudnn_frontend_version.h
    CUDNN=1 CUDNN_LIBRARY=$LIBRARY CUDNN_INCLUDES="$INCLUDE ${frontend%/*}"
    CUDNN_WHY="cuDNN $VERSION in $INCLUDE, cudnn_frontend \
$(macro "$header" CUDNN_FRONTEND_MAJOR_VERSION).$(macro "$header" CUDNN_FRONTEND_MINOR_VERSION) in \
${frontend%/*}"
    # newer frontends compile kernels of their own, whether they are used or not
    if grep -qs nvrtcCreateProgram "${frontend%/*}"/cudnn_frontend/experimental/*.h; then
        find_library nvrtc.h nvrtc nvrtc.h NVRTC ""
        [ -n "$LIBRARY" ] || missing "CUDNN=1: this cudnn_frontend needs NVRTC of the CUDA toolkit"
        CUDNN_LIBRARY="$CUDNN_LIBRARY $LIBRARY"
    fi
}

# Older ones are not tried.
find_nccl() { # -> NCCL, NCCL_WHY, NCCL_LIBRARY, NCCL_INCLUDE
    asked=${NCCL:-}
    NCCL=0 NCCL_LIBRARY="" NCCL_INCLUDE=""
    if [ "$asked" = 0 ]; then
        NCCL_WHY="as asked"
        return
    fi
    find_library nccl.h nccl nccl.h NCCL 2
    major=${NVCC_VERSION%%.*} minor=$(echo "$VERSION" | cut -d . -f 2)
    if [ -n "$LIBRARY" ] && [ "$minor" -ge 18 ]; then
        NCCL=1 NCCL_LIBRARY=$LIBRARY NCCL_INCLUDE=$INCLUDE
        NCCL_WHY="NCCL $VERSION in $INCLUDE"
        return
    fi
    NCCL_WHY="no NCCL 2.18 or newer with nccl.h${LIBRARY:+ (there is $VERSION in $INCLUDE)}: \
install libnccl-dev of NVIDIA's repository, or with pip, as scripts/setup.sh gpu does, \
nvidia-nccl-cu$major"
    [ -z "$asked" ] || missing "NCCL=1, but $NCCL_WHY"
}

# ---- what the Makefile takes ----------------------------------------------------------------

SITES=$(site_packages)
case ${1:-} in
    backend)
        find_nvcc
        find_gpu
        BACKEND=cpu
        if [ -z "$GPU" ]; then
            WHY=$GPU_WHY
            [ -n "$MISSING" ] || WHY="$WHY (nvcc $NVCC_VERSION is there: BACKEND=cuda builds)"
        elif [ -n "$MISSING" ]; then
            WHY="there is a GPU, $GPU, but $MISSING"
        else
            BACKEND=cuda WHY="$GPU and nvcc $NVCC_VERSION are there"
        fi
        set_value BACKEND "$BACKEND"
        set_value BACKEND_WHY "$WHY"
        ;;
    cuda)
        find_nvcc
        if [ -n "$MISSING" ]; then
            set_value MISSING "$MISSING"
            set_value CUDNN "${CUDNN:-0}"
            set_value NCCL "${NCCL:-0}"
            exit 0
        fi
        find_arch
        find_cublas
        find_cudart
        find_cudnn
        find_nccl
        set_value NVCC "$NVCC"
        set_value NVCC_VERSION "$NVCC_VERSION"
        set_value GPU_ARCH "$GPU_ARCH"
        set_value GPU_ARCH_WHY "$GPU_ARCH_WHY"
        set_value GENCODE "${GENCODE# }"
        set_value CUBLAS "$CUBLAS"
        set_value CUBLAS_VERSION "$CUBLAS_VERSION"
        set_value CUDART "$CUDART"
        set_value CUDA_INCLUDES "$(printf '%s\n' "$CUDART_INCLUDE" "$CUBLAS_INCLUDE" |
            uniq | tr '\n' ' ' | sed 's/ $//')"
        set_value CUDNN "$CUDNN"
        set_value CUDNN_WHY "$CUDNN_WHY"
        set_value CUDNN_LIBRARY "$CUDNN_LIBRARY"
        set_value CUDNN_INCLUDES "$CUDNN_INCLUDES"
        set_value NCCL "$NCCL"
        set_value NCCL_WHY "$NCCL_WHY"
        set_value NCCL_LIBRARY "$NCCL_LIBRARY"
        set_value NCCL_INCLUDE "$NCCL_INCLUDE"
        set_value MISSING "$MISSING"
        ;;
    *)
        echo "usage: dev/make/find_cuda.sh backend | cuda" >&2
        exit 2
        ;;
esac
