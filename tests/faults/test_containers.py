"""Containers and other odd places: read-only roots, homes and caches that are none, users that nobody knows.

Every command works there, says what it could not keep and which variable helps, and compiles a kernel that cannot be kept once.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import files
from helpers.command import LSTMCLI, SECONDS, lstmcli
from helpers.system_tools import need, need_mounts

from lstmcli.kernel.native.target import levels_here

HERE = "/mnt"  # where the work folder lies inside
# A user who may read everything, as Python may lie in root's home.
UNKNOWN = "setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
READ_ONLY = "mount -o remount,bind,ro / && ! touch /read-only 2>&-"
KEPT, NOTE, WARNING, SILENT = "kept", "note", "warning", "silent"


class Place(NamedTuple):
    """Where commands run.

    kernels    kept: once compiled, they stay, and nothing need be said; note: they stay in another folder than usual; warning:
               every run compiles; silent: they are there already
    says       what a note or warning names besides the variable that helps
    setup      lines of a shell, run by root in a mount namespace of its own, in the work folder
    variables  of the commands
    user       the words that start a command as somebody else
    """

    kernels: str
    says: str = ""
    setup: str = ":"
    variables: str = ""
    user: str = ""


PLACES = {
    "read-only root": Place(WARNING, "/usr/.cache", READ_ONLY, "HOME=/usr TMPDIR=/usr"),
    "read-only root, writable TMPDIR": Place(NOTE, "/usr/.cache", READ_ONLY, f"HOME=/usr TMPDIR={HERE}/tmp"),
    "no HOME, unknown user": Place(NOTE, "no home", variables=f"TMPDIR={HERE}/tmp", user=UNKNOWN),
    "HOME missing": Place(NOTE, "no home", variables=f"HOME=/nowhere TMPDIR={HERE}/tmp"),
    "HOME not writable": Place(NOTE, "/usr/.cache", variables=f"HOME=/usr TMPDIR={HERE}/tmp", user=UNKNOWN),
    "TMPDIR gone": Place(KEPT, variables=f"HOME={HERE}/home TMPDIR=/proc/gone"),
    "HOME missing, TMPDIR gone": Place(WARNING, "/proc/gone", variables="HOME=/nowhere TMPDIR=/proc/gone", user=UNKNOWN),
    "noexec": Place(KEPT, setup="mount -t tmpfs -o noexec,mode=700 tmpfs cache", variables=f"LSTMCLI_CACHE_DIR={HERE}/cache"),
    "full": Place(
        WARNING,
        "No space left",
        "mount -t tmpfs -o size=4k,mode=700 tmpfs cache",
        f"LSTMCLI_CACHE_DIR={HERE}/cache",
    ),
    "full, and another one": Place(
        NOTE,
        "No space left",
        "mount -t tmpfs -o size=4k,mode=700 tmpfs cache",
        f"LSTMCLI_CACHE_DIR={HERE}/cache:{HERE}/home/cache",
    ),
    "no /proc": Place(KEPT, setup="mount -t tmpfs tmpfs /proc", variables=f"HOME={HERE}/home"),
    "all at once": Place(
        WARNING,
        "No space left",
        f"mount -t tmpfs -o size=4k,noexec,mode=755 tmpfs cache && chown 12345 cache && {READ_ONLY}",
        f"HOME=/nowhere TMPDIR=/proc/gone LSTMCLI_CACHE_DIR={HERE}/cache",
        UNKNOWN,
    ),
    "all at once, with the kernels of an image": Place(
        SILENT,
        "",
        f"mount --bind image image && mount -o remount,bind,ro,noexec image && {READ_ONLY}",
        f"HOME=/nowhere TMPDIR=/proc/gone LSTMCLI_CACHE_DIR={HERE}/image",
        UNKNOWN,
    ),
}

COMMANDS = {  # in this order; the file of each message has the name
    "env": "env",
    "make": "model init --input-size 3 --units 4 -o model.h5",
    "show": "model show model.h5",
    "run": "run -i x.npy -w model.h5 -o result.h5 --progress none",
    "again": "run -i x.npy -w model.h5 -o again.h5 --progress none",
    "predict": "predict -i x.npy -w model.h5 -o predicted.h5 --progress none",
    "verify": "verify result.h5",
    "plan": "plan -i x.npy -w model.h5 --shards 2 -o plan.json",
    "part 1": "run --plan plan.json --shard 1 --progress none",
    "part 2": "run --plan plan.json --shard 2 --progress none",
    "merge": "merge plan.json -o merged.h5",
}
COMPILE = {"run", "again", "predict", "part 1", "part 2"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an image, made by root."""
    folder = tmp_path_factory.mktemp("image") / "image"
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(folder)}
    assert lstmcli("env", "--warmup", "--cpu", levels_here()[0], cwd=folder.parent, env=env).code == 0
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())} == {0o755, 0o644}  # others may read it
    return folder


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("name", PLACES)
def test_every_command_works_in(name: str, image: Path, tmp_path: Path) -> None:
    need("setpriv")
    need_mounts()
    place = PLACES[name]
    for folder, mode in (("home", 0o777), ("tmp", 0o1777), ("cache", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(mode)
    tmp_path.chmod(0o777)
    subprocess.run(["cp", "-a", str(image), str(tmp_path / "image")], check=True)
    files.write_npy(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
    start = f'{place.user} env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" {place.variables} {" ".join(LSTMCLI)}'
    lines = [f"mount --bind . {HERE}", f"cd {HERE}", f"{{ {place.setup}; }}"]
    lines += [f"{{ {start} {line} >'{one}.out' 2>'{one}.err'; echo $? >'{one}.code'; }}" for one, line in COMMANDS.items()]
    script = ["unshare", "-m", "sh", "-c", " && ".join(lines)]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=4 * SECONDS, check=False)
    assert (tmp_path / "env.code").exists(), f"the place was not made: {done.stderr}"
    said = {one: (tmp_path / f"{one}.err").read_text() for one in COMMANDS}
    assert {one: int((tmp_path / f"{one}.code").read_text()) for one in COMMANDS} == dict.fromkeys(COMMANDS, 0), said
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "result.h5").read_bytes()
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "result.h5").read_bytes()
    compiled = {one for one, text in said.items() if "compiling" in text}
    assert compiled == {WARNING: COMPILE, SILENT: set()}.get(place.kernels, {"run"})
    for one in COMMANDS:
        assert said[one].count("\n") == (one in compiled), said[one]
        if one in compiled and place.kernels != KEPT:
            assert all(word in said[one] for word in (place.kernels, place.says, "LSTMCLI_CACHE_DIR")), said[one]


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_many_starts_at_once_share_a_read_only_cache(count: int, image: Path, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
    before = {path: path.stat().st_mtime_ns for path in (image, *image.iterdir())}
    image.chmod(0o555)
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(image)}
    run = [*LSTMCLI, "run", "-i", "x.npy", "-u", "4", "-q", "-o"]
    running = [subprocess.Popen([*run, f"{k}.h5"], cwd=tmp_path, env=env, stderr=subprocess.PIPE) for k in range(count)]
    ended = [(process.communicate(timeout=2 * SECONDS)[1], process.returncode) for process in running]
    image.chmod(0o755)
    assert ended == [(b"", 0)] * count
    assert len({(tmp_path / f"{k}.h5").read_bytes() for k in range(count)}) == 1
    assert {path: path.stat().st_mtime_ns for path in (image, *image.iterdir())} == before
