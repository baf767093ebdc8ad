"""What of the host makes large checkpoints slow, or fail: memory, descriptors, disks."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from glmquant.doctor.checks import Check, State
from glmquant.errors import StorageError
from glmquant.hubs.known import MODELS
from glmquant.runtime.hosts import available_nbytes
from glmquant.storage import free_nbytes, nearest

GROUP: Final = "host"

LEAST_SHM_NBYTES: Final = 10**9
"""``--shm-size=1g`` of vllm-ascend's docker commands; docker's own default is 64 MiB."""

LEAST_DESCRIPTORS: Final = 65535
"""To it vLLM raises the soft limit (vllm 0.30.0 ``utils/system_utils.py``)."""

LEAST_MEMORY_NBYTES: Final = 2 * 10**9
"""What a run of many workers takes at most, and its page tables."""

NETWORK_TYPES: Final = (
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "dpc", "fuse.alluxio", "fuse.ceph", "fuse.dpc",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.ossfs", "fuse.s3fs", "fuse.sshfs",
    "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "pvfs2", "smb3", "virtiofs",
)  # fmt: skip
"""File systems whose bytes come over a line."""

DEAD_VARIABLES: Final = {
    "VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE": "no version of vllm-ascend since 2025-07 reads it",
    "VLLM_ASCEND_BALANCE_SCHEDULING": "deprecated in vllm-ascend 0.23, unread in 0.30.0rc2: "
    "enable_balance_scheduling in --additional-config",
}
"""Variable → why setting it is in vain."""


class Mount(NamedTuple):
    """Where a file system hangs.

    Attributes:
        place: Its folder.
        kind: ``ext4``, ``nfs4``, …
    """

    place: Path
    kind: str


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """The lines of ``/proc/mounts``.

    Args:
        text: Its content; a blank in a path stands there in octal.
    """
    mounts = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3:
            place = words[1].encode().decode("unicode_escape").encode("latin-1", "replace")
            mounts.append(Mount(Path(os.fsdecode(place)), words[2]))
    return tuple(mounts)


def mount_of(path: Path, mounts: tuple[Mount, ...]) -> Mount | None:
    """The file system that holds a path: the deepest, and of equals the last, which hides others.

    Args:
        path: An absolute path.
        mounts: All of them, in order.
    """
    over = [mount for mount in mounts if path.is_relative_to(mount.place)]
    return max(over, key=lambda mount: len(mount.place.parts), default=None) if over else None


def check_host(root: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Check]:
    """Memory, shared memory, descriptors, the disk of a folder, variables that do nothing.

    Args:
        root: ``/``, but in tests.
        folder: Where checkpoints lie or will.
        environment: The variables of this process.

    Yields:
        One check each.
    """
    yield _check_memory()
    yield _check_shared_memory(root / "dev" / "shm")
    yield _check_descriptors()
    yield from _check_disk(root, folder)
    for name, why in DEAD_VARIABLES.items():
        if name in environment:
            yield Check(GROUP, name, State.WARNING, why, f"unset {name}")


def _check_memory() -> Check:
    nbytes = available_nbytes()
    text = f"{nbytes / 1e9:.1f} GB can be had"
    if not nbytes:
        return Check(GROUP, "memory", State.NOTE, "how much can be had is not told")
    if nbytes < LEAST_MEMORY_NBYTES:
        return Check(
            GROUP, "memory", State.WARNING, text, "glmquant w8a8 --workers 2, or end others"
        )
    return Check(GROUP, "memory", State.OK, text)


def _check_shared_memory(place: Path) -> Check:
    try:
        room = os.statvfs(place)
    except OSError as error:
        text = f"{place}: {error.strerror}"
        remedy = "docker run --shm-size=1g, or mount a tmpfs there"
        return Check(GROUP, "shared memory", State.WARNING, text, remedy)
    nbytes = room.f_blocks * room.f_frsize
    text = f"{nbytes / 1e9:.2f} GB at {place}"
    if nbytes < LEAST_SHM_NBYTES:
        text += ": the engine's processes pass tensors through it"
        remedy = "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
        source = "vllm-ascend installation.md (182b75e)"
        return Check(GROUP, "shared memory", State.WARNING, text, remedy, source)
    return Check(GROUP, "shared memory", State.OK, text)


def _check_descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    text = f"{soft:,} now, {shown} at most" if soft != resource.RLIM_INFINITY else "no limit"
    if hard != resource.RLIM_INFINITY and hard < LEAST_DESCRIPTORS:
        most = LEAST_DESCRIPTORS
        remedy = f"ulimit -n {most} as root, or docker run --ulimit nofile={most}"
        source = "vllm 0.30.0 utils/system_utils.py: set_ulimit"
        return Check(GROUP, "file descriptors", State.WARNING, text, remedy, source)
    return Check(GROUP, "file descriptors", State.OK, text)


def _check_disk(root: Path, folder: Path) -> Iterator[Check]:
    """Room for which models, and over a line or not."""
    place = nearest(folder)
    try:
        nbytes = free_nbytes(folder)
    except StorageError as error:
        yield Check(GROUP, "disk", State.PROBLEM, f"{place}: {error.found}", error.hint or "")
        return
    if nbytes is None:
        yield Check(GROUP, "disk", State.NOTE, f"{place}: its file system does not tell its room")
    else:
        fitting = [
            model.alias for model in MODELS if model.form == "BF16" and model.nbytes < nbytes
        ]
        least = min(model.nbytes for model in MODELS)
        text = f"{nbytes / 1e9:.0f} GB free at {place}: "
        text += f"BF16 of {', '.join(fitting)}" if fitting else "BF16 weights of no GLM-4.x"
        state = State.OK if nbytes > least else State.WARNING
        remedy = (
            "" if nbytes > least else "glmquant doctor DIR for another disk; plan counts every byte"
        )
        yield Check(GROUP, "disk", state, text, remedy)
    mounts: tuple[Mount, ...] = ()
    with suppress(OSError):
        text = (root / "proc" / "mounts").read_text(encoding="utf-8", errors="surrogateescape")
        mounts = parse_mounts(text)
    mount = mount_of(place.resolve(), mounts)
    if mount is None:
        yield Check(GROUP, "file system", State.NOTE, f"{place}: of what kind is not told")
    elif mount.kind in NETWORK_TYPES:
        text = f"{mount.kind} at {mount.place}: an engine that maps shards reads them page by page"
        remedy = (
            "copy the checkpoint to a local disk, or serve with --safetensors-load-strategy eager"
        )
        source = "vllm 0.30.0 config/load.py: safetensors_load_strategy"
        yield Check(GROUP, "file system", State.WARNING, text, remedy, source)
    elif mount.kind == "overlay":
        text = f"overlay at {mount.place}: what is written here goes with the container"
        yield Check(
            GROUP, "file system", State.WARNING, text, "docker run -v a host folder, and work there"
        )
    else:
        yield Check(GROUP, "file system", State.OK, f"{mount.kind} at {mount.place}")
