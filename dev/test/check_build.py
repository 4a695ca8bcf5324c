"""Checks how the build chooses: a made-up nvcc, nvidia-smi and toolkits in a temporary folder, and
what dev/make/find_cuda.sh and the Makefile make of them. Compiles nothing. Exit code 0: every
choice is the right one; 1: not."""

import os
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIND = os.path.join(TOP, "dev", "make", "find_cuda.sh")

NVCC = """#!/bin/sh
case $1 in
    --version) echo 'Cuda compilation tools, release {0}, V{0}.1' ;;
    --list-gpu-code) printf 'sm_80\\nsm_89\\nsm_90\\n' ;;
esac
"""
SMI = """#!/bin/sh
case $1 in
    -L) printf 'GPU 0: {0} (UUID: GPU-1)\\nGPU 1: {0} (UUID: GPU-2)\\n' ;;
    *) printf '{1}\\n{1}\\n' ;;
esac
"""
NO_GPU = "#!/bin/sh\necho 'No devices were found'\nexit 6\n"
VERSION = "#define {0}_MAJOR {1}\n#define {0}_MINOR {2}\n#define {0}_PATCH{3} 0\n"


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, mode)


def write_library(root, lib, header, name, version):
    """A header and a library, as toolkits and wheels have them."""
    write(f"{root}/include/{header}", "")
    write(f"{root}/include/{version[0]}", version[1])
    write(f"{root}/{lib}/{name}", "")


def toolkit(root, release, lib="lib64"):
    """nvcc, runtime and cublasLt of a release, under root."""
    major = release.split(".", maxsplit=1)[0]
    write(f"{root}/bin/nvcc", NVCC.format(release), 0o755)
    write(f"{root}/include/cuda_runtime.h", "")
    write(f"{root}/{lib}/libcudart_static.a", "")
    version = VERSION.format("CUBLAS_VER", major, 4, "")
    write_library(root, lib, "cublasLt.h", "libcublasLt.so", ("cublas_api.h", version))


class Machine:
    """A search path with the tools of a machine, and what the scripts say on it."""

    def __init__(self, folder):
        self.folder = folder
        self.failures = 0
        self.set("nvidia-smi", NO_GPU)
        self.set("python3", f"#!/bin/sh\necho {folder}/site\n")

    def set(self, program, text):
        write(f"{self.folder}/bin/{program}", text, 0o755)

    def environment(self, given):
        keep = ("HOME", "TMPDIR", "LANG")
        path = f"{self.folder}/bin:/usr/local/bin:/usr/bin:/bin"
        return {**{k: os.environ[k] for k in keep if k in os.environ}, "PATH": path, **given}

    def find(self, what, **given):
        done = subprocess.run(
            [FIND, what], env=self.environment(given), capture_output=True, text=True, check=False
        )
        lines = [line.partition("=") for line in done.stdout.splitlines()]
        return {name: value.replace("~", " ") for name, _, value in lines}

    def make(self, *arguments, **given):
        command = ["make", "--no-print-directory", *arguments]
        environment = self.environment(given)
        done = subprocess.run(
            command, cwd=TOP, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def expect(self, what, got, want):
        """want must be in got, or be it where it is empty or a number."""
        if got is None or (want not in got if isinstance(want, str) and want else want != got):
            self.failures += 1
            print(f"FAILED: {what}: {got!r}, want {want!r}")


def check_backend(m):
    cuda = f"{m.folder}/cuda"
    toolkit(cuda, "12.4")
    hopper = SMI.format("NVIDIA H100", 9.0)
    for what, smi, given, backend, why in (
        ("no GPU", NO_GPU, {"CUDA_HOME": cuda}, "cpu", "nvcc 12.4 is there: BACKEND=cuda"),
        ("a GPU", hopper, {"CUDA_HOME": cuda}, "cuda", "2 x NVIDIA H100 and"),
        ("no nvcc", hopper, {"NVCC": "/none"}, "cpu", "/none is not there"),
    ):
        m.set("nvidia-smi", smi)
        found = m.find("backend", **given)
        m.expect(what, found.get("BACKEND"), backend)
        m.expect(what, found.get("BACKEND_WHY"), why)
    toolkit(f"{m.folder}/old", "11.8")
    found = m.find("backend", CUDA_HOME=f"{m.folder}/old")
    m.expect("an old nvcc", found.get("BACKEND"), "cpu")
    m.expect("an old nvcc", found.get("BACKEND_WHY"), "is version 11.8: install the CUDA toolkit")


def check_architecture(m):
    cuda = f"{m.folder}/cuda"
    for what, smi, asked, arch, part in (
        ("Hopper", SMI.format("H", 9.0), "", "90a", "arch=compute_90a,code=sm_90a"),
        ("Ada", SMI.format("L", 8.9), "native", "89", "arch=compute_89,code=sm_89"),
        ("newer than nvcc", SMI.format("B", 12.0), "", "80 90a ptx", "code=compute_90"),
        ("no GPU", NO_GPU, "", "80 90a ptx", "code=compute_90"),
        ("a list", NO_GPU, "sm_80,90a", "80 90a", "code=sm_80 -gencode arch=compute_90a"),
    ):
        m.set("nvidia-smi", smi)
        found = m.find("cuda", CUDA_HOME=cuda, GPU_ARCH=asked)
        m.expect(what, found.get("GPU_ARCH") == arch, True)
        m.expect(what, found.get("GENCODE"), part)
        m.expect(what, found.get("MISSING"), "")
    m.expect("no GPU", m.find("cuda", CUDA_HOME=cuda, GPU_ARCH="native")["MISSING"], "=native, but")
    m.expect("unknown", m.find("cuda", CUDA_HOME=cuda, GPU_ARCH="55")["MISSING"], "knows 80 89 90")


def check_libraries(m):
    cuda, site = f"{m.folder}/cuda", f"{m.folder}/site"
    found = m.find("cuda", CUDA_HOME=cuda)
    m.expect("toolkit", found["CUBLAS"], f"{cuda}/lib64/libcublasLt.so")
    m.expect("toolkit", found["CUBLAS_VERSION"], "12.4.0")
    m.expect("toolkit", found["CUDART"], f"{cuda}/lib64/libcudart_static.a")
    # a toolkit of which the wheels hold the libraries, as pip lays them out
    bare, wheels = f"{m.folder}/bare", f"{site}/nvidia"
    toolkit(bare, "99.1")
    os.remove(f"{bare}/lib64/libcublasLt.so")
    found = m.find("cuda", CUDA_HOME=bare)
    m.expect("no cublasLt", found["MISSING"], "no cublasLt of CUDA 99")
    version = ("cublas_api.h", VERSION.format("CUBLAS_VER", 99, 2, ""))
    write_library(f"{wheels}/cublas", "lib", "cublasLt.h", "libcublasLt.so.99", version)
    found = m.find("cuda", CUDA_HOME=bare, CUDNN="0")
    m.expect("wheel", found["CUBLAS"], f"{wheels}/cublas/lib/libcublasLt.so.99")
    m.expect("wheel", found["MISSING"], "")
    m.expect("asked", found["CUDNN_WHY"], "as asked")
    # cuDNN and its frontend
    version = ("cudnn_version.h", VERSION.format("CUDNN", 9, 77, "LEVEL"))
    write_library(f"{bare}", "lib64", "cudnn.h", "libcudnn.so", version)
    write(f"{bare}/include/cudnn_frontend.h", "")
    found = m.find("cuda", CUDA_HOME=bare)
    m.expect("cuDNN", found["CUDNN"], "1")
    m.expect("cuDNN", found["CUDNN_WHY"], "cuDNN 9.77.0 in")
    m.expect("fp32", m.find("cuda", CUDA_HOME=bare, PRECISION="fp32")["CUDNN"], "0")


def nccl_version(minor):
    return ("nccl.h", VERSION.format("NCCL", 2, minor, ""))


def check_nccl(m):
    cuda = f"{m.folder}/nccl_cuda"
    toolkit(cuda, "12.4")
    write_library(cuda, "lib64", "nccl.h", "libnccl.so.2", nccl_version(17))
    found = m.find("cuda", CUDA_HOME=cuda)
    m.expect("old NCCL", found["NCCL"], "0")
    m.expect("old NCCL", found["NCCL_WHY"], "no NCCL 2.18 or newer with nccl.h (there is 2.17.0")
    m.expect("old NCCL", found["NCCL_WHY"], "nvidia-nccl-cu12")
    m.expect("old NCCL", found["MISSING"], "")
    m.expect("asked", m.find("cuda", CUDA_HOME=cuda, NCCL="1")["MISSING"], "NCCL=1, but no NCCL")
    write_library(cuda, "lib64", "nccl.h", "libnccl.so.2", nccl_version(18))
    found = m.find("cuda", CUDA_HOME=cuda)
    m.expect("NCCL", found["NCCL"], "1")
    m.expect("NCCL", found["NCCL_WHY"], "NCCL 2.18.0 in")
    m.expect("NCCL", found["NCCL_LIBRARY"], f"{cuda}/lib64/libnccl.so.2")
    m.expect("NCCL", found["NCCL_INCLUDE"], f"{cuda}/include")
    m.expect("without", m.find("cuda", CUDA_HOME=cuda, NCCL="0")["NCCL"], "0")


def check_make(m):
    cuda = {"CUDA_HOME": f"{m.folder}/cuda"}
    for what, code, part, arguments in (
        ("default", 0, "BACKEND=cuda: 2 x NVIDIA H100 and nvcc 12.4 are there", ["config"]),
        ("asked", 0, "BACKEND=cpu: as asked", ["config", "BACKEND=cpu"]),
        ("bf16", 2, "choose PRECISION=fp32", ["BACKEND=cpu", "PRECISION=bf16"]),
        ("unknown", 2, "choose one of: cpu cuda emu", ["BACKEND=gpu"]),
        ("no nvcc", 2, "cuda: NVCC=/none is not there", ["config", "BACKEND=cuda", "NVCC=/none"]),
        ("no cuDNN", 2, "is not known; choose one of: 0 1", ["BACKEND=cuda", "CUDNN=2"]),
        ("NCCL on a CPU", 2, "NCCL=1 is for GPUs", ["BACKEND=cpu", "NCCL=1"]),
        ("sanitizer", 2, "make gpu-check", ["BACKEND=cuda", "SANITIZE=1"]),
    ):
        m.set("nvidia-smi", SMI.format("NVIDIA H100", 9.0))
        got, said = m.make(*arguments, **cuda)
        m.expect(f"make: {what}", got, code)
        m.expect(f"make: {what}", said, part)
    _, said = m.make("-n", "BACKEND=cuda", "CUDNN=0", "ATTN=laser", "PRECISION=bf16", **cuda)
    m.expect("make", said, "arch=compute_90a,code=sm_90a")
    m.expect("make", said, "-DLASER_BF16")
    m.expect("no driver is linked", "-lcuda" in said or "nvidia-ml" in said, False)


def main():
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(folder)
        check_backend(machine)
        check_architecture(machine)
        check_libraries(machine)
        check_nccl(machine)
        check_make(machine)
    failures = machine.failures
    print(f"check_build: {failures} failures" if failures else "check_build: every choice is right")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
