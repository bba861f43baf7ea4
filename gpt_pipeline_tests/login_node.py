"""A login node on this machine: a real sshd, reached as `login` with a key of its own.

It needs Debian's `openssh-server`, and root, as whom it lets in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpt_pipeline_tests.mirrors import listens
from gpt_pipeline_tests.servers import free_port, wait

HOST = "login"
_SSHD = "/usr/sbin/sshd"
_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
SetEnv {variables}
"""
_CLIENT = """\
Host login
  HostName 127.0.0.1
  Port {port}
  User root
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
"""


def why_not() -> str:
    """Return what this machine lacks for it; empty if it has all."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux, and root"
    return "" if Path(_SSHD).exists() and shutil.which("ssh") else "needs sshd: apt-get install openssh-server"


@contextmanager
def login_node(folder: Path, *, environment: Mapping[str, str]) -> Iterator[Path]:
    """Run one for the block, in the empty folder `folder`; yields the folder with the `ssh` that reaches it.

    Its commands find `environment`. Without the file `authorized` it lets nobody in; without `known` nobody knows it.
    """
    port = free_port()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    variables = " ".join(f"{name}={value}" for name, value in environment.items())
    (folder / "server").write_text(_SERVER.format(port=port, folder=folder, variables=variables))
    (folder / "client").write_text(_CLIENT.format(port=port, folder=folder))
    shutil.copyfile(folder / "user_key.pub", folder / "authorized")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    commands = folder / "bin"
    commands.mkdir()
    ssh = commands / "ssh"  # ssh looks for its own configuration in no place that a variable names
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/client "$@"\n')
    ssh.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([_SSHD, "-D", "-e", "-f", folder / "server"], stdout=log, stderr=log)
    try:
        wait(lambda: listens(port), seconds=30, what="sshd")
        yield commands
    finally:
        server.kill()
        server.wait()
