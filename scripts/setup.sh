#!/bin/sh
# setup.sh: installs what is missing, one line for each thing, and nothing where all is there.
#   scripts/setup.sh [build] [quickstart] [test] [gpu] [reference]      (no group: build)
# Packages come from Debian or Ubuntu with apt-get; where there is no apt or no permission, they are
# named and the exit code is 1. Python packages go to build/venv. The CUDA toolkit is only named.
set -eu

usage() {
    cat <<'END'
Usage: setup.sh [GROUP]...       installs what is missing (default: build)
  build       C compiler, make, OpenMPI, cJSON (BACKEND=cpu)
  quickstart  what the vocabulary and the text need, and numpy and matplotlib for the plots
  test        as quickstart, and what reads our files back: safetensors, tensorboard,
              sentencepiece (also with BACKEND=emu); tokenizers and google-crc32c, for
              dev/data/from_huggingface.py
  gpu         as build, and for BACKEND=cuda: C++ compiler, the headers of cudnn_frontend, and but
              for machines with one GPU NCCL; says what is missing of the CUDA toolkit, which it
              does not install
  reference   PyTorch and transformers, for dev/ref/model_ref.py and the comparison in dev/bench
Exit status: 0 all is there, 1 something cannot be installed, 2 wrong usage.
END
}

cd "$(dirname "$0")/.."
missing=""   # Debian packages
why=""       # what stands for each, for people without apt
venv=build/venv
wheels=""    # Python packages
headers=""   # Python packages of which files alone are used: without what they depend on
toolkit=""   # what is missing of the CUDA toolkit

need() { # PACKAGE DESCRIPTION CHECK...: the package is missing when the check fails
    package=$1 description=$2
    shift 2
    "$@" >/dev/null 2>&1 && return 0
    missing="$missing $package"
    why="$why
  $package ($description)"
}

header() { # FILE...: one of them is in a directory that compilers search
    for file in "$@"; do
        for dir in /usr/include /usr/local/include /usr/include/*-linux-gnu*; do
            [ -e "$dir/$file" ] && return 0
        done
    done
    return 1
}

# by the header that is OpenBLAS's alone: cblas.h may be another library's
openblas() { header openblas_config.h openblas/openblas_config.h; }
command_there() { command -v "$1"; }
venv_there() { [ -x $venv/bin/python ] || python3 -c 'import ensurepip, venv'; }

in_venv() { # FILE: among build/venv's packages
    for dir in "$venv"/lib/python3*/site-packages; do
        [ -e "$dir/$1" ] && return 0
    done
    return 1
}

wheel() { # PACKAGE IMPORTED: into build/venv unless the directory of the import is there
    in_venv "$2" || wheels="$wheels $1"
}

group_build() {
    need gcc "C compiler" command_there cc
    need libc6-dev "C library headers" header stdio.h
    need make make command_there make
    need libopenmpi-dev "MPI headers" command_there mpicc
    need openmpi-bin "mpirun" command_there mpirun
    need libcjson-dev "cJSON" header cjson/cJSON.h
}

group_quickstart() {
    need g++ "C++ compiler" command_there c++
    need zlib1g-dev zlib header zlib.h
    need libssl-dev "SHA-256" header openssl/evp.h
    need libsentencepiece-dev sentencepiece header sentencepiece_trainer.h
    need python3 Python command_there python3
    need python3-venv "Python environments" venv_there
    need groff-base "manual pages as text" command_there groff
    need curl "downloads" command_there curl
    wheel numpy numpy
    wheel matplotlib matplotlib
}

group_test() {
    group_quickstart
    need libopenblas-openmp-dev "BLAS=openblas" openblas
    need iproute2 "two machines made of network namespaces" command_there ip
    wheel safetensors safetensors
    wheel tensorboard tensorboard
    wheel sentencepiece sentencepiece
    wheel tokenizers tokenizers
    wheel google-crc32c google_crc32c
}

group_gpu() {
    group_build
    need g++ "C++ compiler" command_there c++
    toolkit=$(CUDNN=0 NCCL=0 dev/make/find_cuda.sh cuda | sed -n 's/^MISSING=//p' | tr '~' ' ')
    found=$(dev/make/find_cuda.sh cuda)
    cuda_major=$(printf '%s\n' "$found" | sed -n 's/^NVCC_VERSION=\([0-9]*\).*/\1/p')
    printf '%s\n' "$found" | grep -q '^CUDNN=1$' || in_venv include/cudnn_frontend.h ||
        headers="$headers nvidia-cudnn-frontend"
    printf '%s\n' "$found" | grep -q '^NCCL=1$' || [ -z "$cuda_major" ] || one_gpu ||
        headers="$headers nvidia-nccl-cu$cuda_major"
    [ -n "$headers" ] || return 0
    need python3 Python command_there python3
    need python3-venv "Python environments" venv_there
}

one_gpu() { # nobody to talk to
    [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')" = 1 ]
}

group_reference() {
    need python3 Python command_there python3
    need python3-venv "Python environments" venv_there
    wheel numpy numpy
    wheel safetensors safetensors
    wheel torch torch
    wheel transformers transformers
}

install_packages() {
    [ -n "$missing" ] || return 0
    root=""
    if [ "$(id -u)" != 0 ]; then root="sudo"; fi
    if ! command -v apt-get >/dev/null || { [ -n "$root" ] && ! command -v sudo >/dev/null; }; then
        echo "setup: these are missing and cannot be installed from here (names of Debian):$why" >&2
        echo "setup: install them, then run the same command again." >&2
        exit 1
    fi
    echo "setup: installing packages:$why"
    # old package lists may do where new ones cannot be had
    $root apt-get update -qq >/dev/null || true
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
        echo "setup: apt-get failed; install these, then run the same command again: $missing" >&2
        exit 1
    }
}

pip_install() { # OPTION... PACKAGE...
    $venv/bin/python -m pip install -q --disable-pip-version-check "$@" || {
        echo "setup: pip failed; install into $venv, then run the same command again: $*" >&2
        exit 1
    }
}

install_wheels() {
    [ -n "$wheels$headers" ] || return 0
    if [ ! -x $venv/bin/python ]; then
        echo "setup: making $venv"
        mkdir -p build
        python3 -m venv $venv || { echo "setup: python3 -m venv failed" >&2; exit 1; }
    fi
    for name in $wheels $headers; do echo "setup: installing $name (Python, $venv)"; done
    # shellcheck disable=SC2086
    {
        [ -z "$wheels" ] || pip_install $wheels
        [ -z "$headers" ] || pip_install --no-deps $headers
    }
}

[ $# -gt 0 ] || set -- build
for group in "$@"; do
    case $group in
        build | quickstart | test | gpu | reference) "group_$group" ;;
        --help) usage; exit 0 ;;
        *) echo "setup: no group '$group'" >&2; usage >&2; exit 2 ;;
    esac
done
# a group named twice, or within another, asks once
# shellcheck disable=SC2086
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ' | sed 's/ *$//')
# shellcheck disable=SC2086
wheels=$(printf '%s\n' $wheels | sort -u | tr '\n' ' ' | sed 's/ *$//')
[ -z "$missing" ] || why=$(printf '%s\n' "$why" | sed '/^$/d' | sort -u | sed '1s/^/\n/')
install_packages
install_wheels
if [ -n "$toolkit" ]; then
    echo "setup: missing for BACKEND=cuda, and not installed by this script: $toolkit" >&2
    exit 1
fi
