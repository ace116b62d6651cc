"""A CPU with AMX: Linux and a Python in the emulator Bochs, as the page about the kernel says how to make them."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.system_tools import need

FOLDER = "LSTMCLI_BOCHS"
PACKAGE = Path(__file__).parents[2] / "lstmcli"
LONGEST = 3600  # seconds, on a busy machine
TAKEN = ("bin", "lib", "lib64", "usr/bin/python3*", "usr/lib/python3*", "usr/lib64", "usr/lib/x86_64-linux-gnu/*.so*")
LEFT_OUT = ("libllvmlite.so",)  # kernels come compiled: to compile one there would take hours

INIT = """#!/usr/bin/python3
import ctypes, os, subprocess, termios
libc = ctypes.CDLL(None)
for kind, folder in ((b"proc", b"/proc"), (b"devtmpfs", b"/dev"), (b"tmpfs", b"/tmp")):
    os.makedirs(folder, exist_ok=True)
    libc.mount(kind, folder, kind, 0, None)
terminal = os.open("/dev/ttyS0", os.O_RDWR)
for descriptor in range(3):
    os.dup2(terminal, descriptor)
env = {"PATH": "/usr/bin", "HOME": "/tmp", "PYTHONPATH": "/package", "LSTMCLI_CACHE_DIR": "/kernels"}
done = subprocess.run(["/usr/bin/python3", "/work/program.py"], cwd="/work", env=env)
print("ended with", done.returncode, flush=True)
termios.tcdrain(1)
os.sync()
libc.reboot(0x4321FEDC)
"""

MENU = """default linux
label linux
kernel /vmlinuz
append initrd=/root.img console=ttyS0,115200 quiet mitigations=off no5lvl tsc=reliable
"""

MACHINE = """config_interface: textconfig
display_library: nogui
megs: 2048
cpu: model=sapphire_rapids, count=1, ips=200000000
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=printed
clock: sync=none
log: log
panic: action=fatal
error: action=ignore
info: action=ignore
"""


def run_in_bochs(program: str, kernels: Path, folder: Path) -> list[str]:
    """What a program of Python prints there, line by line: with the package, with kernels, with no file but its own."""
    need("cpio", "lz4", "xorriso")
    if FOLDER not in os.environ:
        pytest.skip(f"{FOLDER} is not set: a folder with Bochs, a kernel of Linux and a root with Python (lstmcli help kernel)")
    image = Path(os.environ[FOLDER]).absolute()
    own = folder / "own"
    for source, name in ((PACKAGE, "package/lstmcli"), (kernels, "kernels")):
        shutil.copytree(source, own / name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(own / "package", quiet=1, stripdir=own)
    for name in ("work", "usr/bin", "usr/lib64", "usr/lib/x86_64-linux-gnu"):
        (own / name).mkdir(parents=True)
    (own / "work/program.py").write_text(program)
    (own / "init").write_text(INIT)
    (own / "init").chmod(0o755)
    iso = folder / "iso/isolinux"
    iso.mkdir(parents=True)
    for loader in ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"):
        shutil.copy(loader, iso)
    (iso / "isolinux.cfg").write_text(MENU)
    shutil.copy(image / "vmlinuz", iso.parent)
    left_out = " ".join(f"! -name {name}" for name in LEFT_OUT)
    files = f"(cd {image}/root && find {' '.join(TAKEN)} {left_out} | cpio -o -H newc --quiet -R 0:0)"
    archive = f"(cd own && find . | cpio -o -H newc --quiet -R 0:0; {files}) | lz4 -l -q - iso/root.img"
    boot = "-b isolinux/isolinux.bin -no-emul-boot -boot-load-size 4 -boot-info-table"
    disk = f"xorriso -as mkisofs -quiet -o boot.iso {boot} iso"
    (folder / "machine").write_text(MACHINE)
    for command in (archive, disk, f"{image}/bochs -q -f machine > /dev/null 2>&1 < /dev/null || true"):
        subprocess.run(command, shell=True, cwd=folder, check=True, timeout=LONGEST)
    lines = (folder / "printed").read_text(errors="replace").splitlines()
    assert "ended with 0" in lines, "\n".join(lines[-40:])
    return lines
