"""Kernels for `pytest --nbval`, forked from one process that has imported what the chapters import.

Each of the twenty notebooks would spend six seconds of a core on that. A forked kernel has memory of its own,
the folder, environment and module path that it would have had, and a namespace with nothing in it.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

# what several chapters import, or PyTorch for those that train
IMPORTED = ["ipykernel.kernelapp", "scipy.stats", "torch._dynamo", "i2sb_lib.plotting", "i2sb_lib.training"]
ADDRESS = "I2SB_KERNELS"  # of the process that forks, for those that run the tests


class Kernel:
    """A process that another one forked, with what Jupyter asks of a Popen."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def start(command: list[str], env: dict[str, str], cwd: str | None = None, **_: object) -> Kernel:
    """What Jupyter's `launch_kernel` does, for Python, without a new interpreter."""
    ordered = {"argv": command[2:], "env": env, "cwd": str(cwd or os.getcwd())}
    with socket.socket(socket.AF_UNIX) as link:
        link.connect("\0" + os.environ[ADDRESS])
        with link.makefile("rw") as file:
            print(json.dumps(ordered), file=file, flush=True)
            return Kernel(int(file.readline()))


def prepare(workers: bool) -> None:
    """Have Jupyter fork its kernels, from a process that ends with this one; `workers` have one already."""
    from jupyter_client.provisioning import local_provisioner

    local_provisioner.launch_kernel = start
    if not workers:
        os.environ[ADDRESS] = f"i2sb-kernels-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as door:
            door.bind("\0" + os.environ[ADDRESS])  # no file: Linux has names for it
            door.listen()
            command = [sys.executable, __file__, str(door.fileno())]
            prepare.server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[door.fileno()])


def serve(door: socket.socket) -> None:
    """Fork a kernel for each caller and tell its process id, until standard input is closed."""
    sys.path.pop(0)  # this folder: kernels do not see the tests
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as kernels have it
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    default = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a kernel that ends leaves no zombie
    while door in select.select([door, sys.stdin], [], [])[0]:
        link = door.accept()[0]
        with link, link.makefile("rw") as file:
            ordered = json.loads(file.readline())
            if pid := os.fork():
                os.setpgid(pid, pid)  # signals reach it with all that it starts, and nothing else
                print(pid, file=file, flush=True)
                continue
        door.close()
        signal.signal(signal.SIGCHLD, default)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        os.environ.clear()
        os.environ.update(ordered["env"], JPY_PARENT_PID=str(os.getppid()))
        os.chdir(ordered["cwd"])
        sys.argv = ordered["argv"]
        return importlib.import_module("ipykernel.kernelapp").launch_new_instance()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
