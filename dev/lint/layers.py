"""Who may include whom: the layers of DESIGN section 1, as a table that lint.py enforces on
direct and indirect includes."""

BASE = {"laser/base.h"}
SEAM = BASE | {"laser/backend.h"}
CONFIG = SEAM | {"laser/config.h", "laser/version.h"}
MODEL = CONFIG | {"laser/arena.h", "laser/rng.h", "laser/model.h"}
TRAIN = MODEL | {
    "laser/optim.h",
    "laser/schedule.h",
    "laser/comm.h",
    "laser/parallel.h",
    "laser/safetensors.h",
    "laser/checkpoint.h",
    "laser/json.h",
}

# Text from a checkpoint
TEXT = MODEL | {
    "laser/pretrained.h",
    "laser/sample.h",
    "dataloader/encode.h",
    "dataloader/vocab.h",
}

# What a run reads: the loader and all that it knows of the files
RUN_DATA = CONFIG | {
    "dataloader/loader.h",
    "dataloader/manifest.h",
    "dataloader/manifest_totals.h",
    "dataloader/shard.h",
    "dataloader/vocab.h",
    "laser/comm.h",
    "laser/json.h",
    "laser/rundata.h",
    "laser/runlog.h",
}

# Files (or folders, with a slash) -> headers of ours that they may reach, besides those of their
# own name or folder. The first line that fits counts.
LAYERS = [
    ("laser/base", set()),
    ("laser/rng", BASE),
    ("laser/arena", BASE),
    ("laser/json", BASE),
    ("laser/version", set()),
    ("laser/stop", set()),
    ("laser/schedule", BASE),
    ("laser/link", BASE),
    ("laser/health", set()),
    ("laser/watch", BASE | {"laser/health.h", "laser/json.h", "laser/link.h"}),
    ("laser/launch", BASE),
    ("laser/comm", BASE),
    ("laser/comm_host", SEAM | {"laser/comm.h", "laser/devices.h"}),
    ("laser/comm_single", BASE | {"laser/comm.h", "laser/launch.h"}),
    (
        "laser/comm_mpi",
        BASE
        | {
            "laser/comm.h",
            "laser/health.h",
            "laser/launch.h",
            "laser/link.h",
            "laser/watch.h",
        },
    ),
    ("laser/meet", BASE | {"laser/launch.h", "laser/link.h"}),
    (
        "laser/comm_env",
        BASE
        | {
            "laser/comm.h",
            "laser/health.h",
            "laser/launch.h",
            "laser/link.h",
            "laser/meet.h",
            "laser/watch.h",
        },
    ),
    ("laser/devices", SEAM | {"laser/comm.h", "laser/link.h"}),
    (
        "laser/cuda/comm_nccl",
        SEAM
        | {
            "laser/comm.h",
            "laser/devices.h",
            "laser/health.h",
            "laser/link.h",
            "laser/watch.h",
        },
    ),
    ("laser/agree", MODEL | {"laser/comm.h", "laser/json.h"}),
    ("laser/backend", BASE),
    ("laser/safetensors", BASE | {"laser/json.h"}),
    ("laser/tbevents", BASE | {"laser/json.h"}),
    ("laser/runlog", BASE | {"laser/json.h", "laser/tbevents.h"}),
    ("laser/config", CONFIG | {"laser/json.h"}),
    ("laser/model", MODEL),
    ("laser/params", MODEL),
    ("laser/passes", MODEL),
    ("laser/forward", MODEL | {"laser/passes.h"}),
    ("laser/backward", MODEL | {"laser/passes.h"}),
    ("laser/sample", MODEL),
    ("laser/pretrained", TRAIN),
    ("laser/generate", TEXT),
    ("laser/probe", MODEL | {"laser/json.h", "laser/passes.h"}),
    ("laser/optim", MODEL | {"laser/schedule.h"}),
    ("laser/parallel", MODEL | {"laser/comm.h", "laser/optim.h", "laser/schedule.h"}),
    ("laser/checkpoint", TRAIN | {"laser/checkpoint_tensors.h"}),
    ("laser/checkpoint_tensors", TRAIN),
    ("laser/plan", TRAIN),
    ("laser/rundir", TRAIN),
    ("laser/rundata", RUN_DATA),
    ("laser/validate", MODEL | RUN_DATA),
    ("laser/cpu/", SEAM),
    ("laser/cuda/", SEAM),
    ("dataloader/", BASE | {"laser/json.h", "laser/rng.h"}),
    ("dev/emu/", BASE),  # stands in for CUDA, knows nothing of what runs on it
]
OWN_FOLDERS = ("laser/cpu/", "laser/cuda/", "dataloader/", "dev/emu/")


def allowed(path):
    """Headers that path may reach; None: anything outside dev/."""
    stem = path.rsplit(".", 1)[0]
    for name, headers in LAYERS:
        if path.startswith(name) if name.endswith("/") else stem == name:
            return headers
    return None


def own(path, header):
    """Whether header belongs to path: the same name, or the same one of OWN_FOLDERS."""
    if path.rsplit(".", 1)[0] == header.rsplit(".", 1)[0]:
        return True
    return any(path.startswith(f) and header.startswith(f) for f in OWN_FOLDERS)


def may_reach(path, header):
    emulator = path.startswith("dev/emu/")
    if path.startswith("dev/") and not emulator or path == "test_gpt.c":
        return True
    if header.startswith("dev/") and not emulator:
        return False
    headers = allowed(path)
    return headers is None or header in headers or own(path, header)


def unknown(path):
    """A file of laser/ that no line of the table names."""
    return path.startswith("laser/") and allowed(path) is None
