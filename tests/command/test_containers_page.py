"""The recipes of the page about containers: an image's steps, a Snakemake rule, a Nextflow process, a conda recipe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import pages
from helpers.command import LSTMCLI, SECONDS, lstmcli, succeed
from helpers.files import SAMPLE_DATA
from helpers.pages import TOP
from helpers.system_tools import need, need_mounts, need_registry

from lstmcli.version import __version__

PAGE = pages.DOCS / "containers.md"


def only(kind: str) -> str:
    (example,) = pages.examples(PAGE, kind)
    return example.text


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with an input, a model, and the result that a recipe must repeat in `want.h5`."""
    shutil.copy(SAMPLE_DATA / "vowels.h5", tmp_path)
    succeed("model", "init", "--input-size", 12, "-u", 5, "-o", "model.h5", cwd=tmp_path)
    succeed("run", "-i", "vowels.h5", "-w", "model.h5", "-o", "want.h5", cwd=tmp_path)
    return tmp_path


def with_command(folder: Path) -> dict[str, str]:
    """The environment in which `lstmcli` is this one."""
    (folder / "bin").mkdir()
    (folder / "bin" / "lstmcli").write_text(f'#!/bin/sh\nexec {" ".join(LSTMCLI)} "$@"\n')
    (folder / "bin" / "lstmcli").chmod(0o755)
    return os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder)}


def test_the_snakemake_rule(job: Path) -> None:
    need("snakemake")
    (job / "Snakefile").write_text(only("python snakemake"))
    call = ["snakemake", "--cores", "2", "vowels.lstm.h5"]
    done = subprocess.run(call, cwd=job, env=with_command(job), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert (job / "vowels.lstm.h5").read_bytes() == (job / "want.h5").read_bytes()


def test_the_nextflow_process(job: Path) -> None:
    need("nextflow")
    workflow = 'workflow { LSTM(Channel.of(tuple(file("vowels.h5"), file("model.h5")))) }\n'
    (job / "main.nf").write_text(only("groovy").replace("process LSTM {", "process LSTM {\n    publishDir '.'") + workflow)
    call = ["nextflow", "run", "main.nf"]
    done = subprocess.run(call, cwd=job, env=with_command(job), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout
    assert (job / "vowels.lstm.h5").read_bytes() == (job / "want.h5").read_bytes()


def test_what_the_pipelines_call(job: Path) -> None:
    """Where neither is installed: their lines, filled in by hand."""
    snakemake = "".join(re.findall(r'^        "(.*)"$', only("python snakemake"), re.MULTILINE))
    nextflow = re.search(r'^    "(lstmcli .*)"$', only("groovy"), re.MULTILINE)
    assert nextflow
    values = {"{input.x}": "vowels.h5", "{input.model}": "model.h5", "{output}": "a.h5", "{threads}": "1"}
    values |= {"{resources.mem_mb}": "2000", "$x ": "vowels.h5 ", "$model": "model.h5", "${x.baseName}": "b"}
    values |= {"$task.cpus": "1", "${task.memory.toMega()}": "2048"}
    for line, output in ((snakemake, "a.h5"), (nextflow[1], "b.lstm.h5")):
        for name, value in values.items():
            line = line.replace(name, value)
        assert not set("{}$") & set(line)
        succeed(*line.split()[1:], cwd=job)
        assert (job / output).read_bytes() == (job / "want.h5").read_bytes()


def test_the_conda_recipe_has_the_version_and_the_dependencies() -> None:
    recipe = only("yaml")
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    run = re.search(r"^  run: \[python (\S+), (.*)\]$", recipe, re.MULTILINE)
    assert run
    assert run[1] == project["requires-python"]
    assert re.findall(r'"(.*?)"', run[2]) == project["dependencies"]
    assert f'version: "{__version__}"' in recipe
    assert project["description"] in recipe
    assert [f"lstmcli = {project['scripts']['lstmcli']}"] == re.findall(r"entry_points: \[(.*)\]", recipe)


def test_an_empty_name_in_the_list_stands_for_the_usual_folders(job: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    env |= {"LSTMCLI_CACHE_DIR": "/proc/nowhere:", "HOME": str(job)}
    ran = lstmcli("run", "-i", "vowels.h5", "-w", "model.h5", "-o", "out.h5", "--progress", "none", cwd=job, env=env)
    assert ran.code == 0
    assert "/proc/nowhere" in ran.err
    assert list((job / ".cache" / "lstmcli").iterdir())


@pytest.mark.slow
@pytest.mark.root
def test_the_steps_of_the_image(job: Path) -> None:
    """In a namespace of its own: all that RUN says but for the system's packages; then a container with a read-only root."""
    need("setpriv")
    need_mounts()
    need_registry()
    build, image = only("dockerfile").split("\n\n")
    steps = [line for line in re.findall(r"^RUN (.*)$", build, re.MULTILINE) if "apt-get" not in line]
    variables = re.findall(r"^ENV (.*)$", image, re.MULTILINE)
    assert (len(steps), len(variables)) == (2, 2)
    (job / "opt").mkdir()
    source = job / "src"
    for name in ("lstmcli", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (TOP / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(TOP / name, source / name)
    # Python may lie in root's home, and the output must have a place.
    user = "setpriv --reuid 12345 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    read_only = "mount --bind /opt /opt; mount -o remount,bind,ro /opt; mount --bind . /mnt; mount -o remount,bind,ro /"
    container = f"cd /mnt; {user} env -i {' '.join(variables)} lstmcli run -i vowels.h5 -w model.h5 -o out.h5 -q"
    mounts = "mount --bind opt /opt; mkdir -p /opt/src; mount -t tmpfs tmpfs /srv; cp -r src /srv"
    script = "; ".join(["set -e", mounts, *(step.replace("/src", "/srv/src") for step in steps), read_only, container])
    job.chmod(0o777)
    path = f"{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"
    call = ["unshare", "-m", "bash", "-c", script]
    env = os.environ | {"PATH": path}
    done = subprocess.run(call, cwd=job, env=env, capture_output=True, text=True, timeout=4 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "compiling" not in done.stderr
    assert (job / "out.h5").read_bytes() == (job / "want.h5").read_bytes()
