"""Faults of a long run: refused before the work, survived without loss, told in one sentence."""

import dataclasses
import errno
import json
import os
import pickle
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from conftest import ROOT
from safetensors import SafetensorError
from test_training import _on_cpu, assert_same_run, changed, state, unbroken  # noqa: F401

from i2sb_lib import faults, files, inputs, training
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.cli import main
from i2sb_lib.config import TrainConfig, learning_rate
from i2sb_lib.faults import MissingExtra, TrainingError, noted_signals
from i2sb_lib.training import train


def at_step(monkeypatch, step: int, do) -> None:
    """Call `do` in the middle of a step."""
    monkeypatch.setattr(
        training, "learning_rate", lambda c, k: (do() if k == step else 0) or learning_rate(c, k)
    )


def refusal(run, *args) -> str:
    """The sentence that `run` refuses with."""
    with pytest.raises((TrainingError, ValueError)) as error:
        run(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def flags(config: TrainConfig) -> list[str]:
    values = {k: v for k, v in vars(config).items() if v != getattr(TrainConfig(), k)}
    named = ([f"--no-{k}"] if v is False else [f"--{k}", str(v)] for k, v in values.items())
    return ["train", *(f.replace("_", "-") if f.startswith("--") else f for pair in named for f in pair)]


def contents(folder: str) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


# Before the first image is read


@pytest.fixture
def no_images(monkeypatch):
    monkeypatch.setattr(
        inputs, "load_images", lambda *a, **k: pytest.fail("images were read before the refusal")
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"degradation": "fog"}, "expected a degradation among"),
        ({"network": "transformer"}, "expected a network among"),
        ({"size": 18}, "expected a size that 4 divides, got 18"),
        ({"tikhonov": 1e-3, "degradation": "jpeg"}, "tikhonov needs cond_x1 and a separable blur"),
        ({"precision": "fp16"}, "expected precision fp16 on a CUDA GPU only, got it on cpu"),
    ],
)
def test_options_that_cannot_work_are_refused_before_images_are_read(tiny, no_images, change, sentence):
    assert sentence in refusal(train, dataclasses.replace(tiny, **change))
    assert not Path(tiny.out).exists()


def test_an_output_that_cannot_be_written_is_found_before_images_are_read(tiny, no_images, tmp_path):
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "run")
    assert f"{out}: expected a folder that can be written to" in refusal(
        train, dataclasses.replace(tiny, out=out)
    )
    (tmp_path / "full").mkdir()
    limit = limited_files(0)
    try:
        assert "full: expected a folder that can be written to" in refusal(train, changed(tiny, "full"))
    finally:
        limited_files(limit)


def test_a_run_that_is_refused_leaves_no_folder(tiny, tmp_path):
    lost = dataclasses.replace(tiny, data=str(tmp_path / "absent"), out=str(tmp_path / "new" / "er" / "run"))
    assert "expected a folder" in refusal(train, lost)
    assert not (tmp_path / "new").exists()
    faults.check_writable(tmp_path / "new" / "er")
    (tmp_path / "there").mkdir()
    faults.check_writable(tmp_path / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_tensorboard_that_is_not_installed_is_named(tiny, no_images, monkeypatch):
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtra, match=r'--tensorboard needs .*: pip install "i2sb-lib\[metrics\]"'):
        train(dataclasses.replace(tiny, tensorboard=True))


def test_a_compiler_that_fails_is_told_before_images_are_read(tiny, no_images, monkeypatch):
    def compile(function):
        raise RuntimeError("No working C++ compiler found\nin a long\ntext")

    monkeypatch.setattr(torch, "compile", compile)
    said = refusal(train, dataclasses.replace(tiny, compile=True))
    assert "--compile needs a C++ compiler" in said
    assert said.endswith("(No working C++ compiler found)")


@pytest.mark.slow
def test_a_missing_compiler_is_noticed(monkeypatch):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    assert "no-such-compiler" in refusal(faults.check_compiler, torch.device("cpu"))


def test_accelerate_launch_on_cpus_is_refused_where_it_starts_one_of_two(tiny, no_images, monkeypatch):
    """With the environment that accelerate itself would give to that one."""
    words = (
        "--cpu --num_processes {} --num_machines 1 --mixed_precision no --dynamo_backend no -m i2sb_lib train"
    )
    for count, sentence in (
        (2, "for N give: torchrun --nproc-per-node N -m i2sb_lib train"),
        (1, "were read"),
    ):
        args = launch_command_parser().parse_args(words.format(count).split())
        with monkeypatch.context() as patch:
            for name, value in prepare_simple_launcher_cmd_env(args)[1].items():
                patch.setenv(name, value)
            with pytest.raises((TrainingError, pytest.fail.Exception), match=sentence):
                train(tiny)


def test_a_state_that_cannot_go_on_is_refused_before_images_are_read(tiny, unbroken, no_images):  # noqa: F811
    before = contents(unbroken.out)
    assert "expected a run to resume at" in refusal(train, tiny, True)
    other = dataclasses.replace(unbroken, lr=0.1, batch_size=5)
    assert "another configuration (batch_size: 4 -> 5, lr: 0.001 -> 0.1)" in refusal(train, other, True)
    past = refusal(train, dataclasses.replace(unbroken, steps=3), True)
    assert past.endswith("state.pt is at step 9 already, past 3: give more --steps")
    assert contents(unbroken.out) == before


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_damaged_or_foreign_state_is_refused_and_nothing_in_it_runs(tiny, unbroken, tmp_path):  # noqa: F811
    Path(tiny.out).mkdir()
    path, good = Path(tiny.out) / "state.pt", (Path(unbroken.out) / "state.pt").read_bytes()
    bomb = Bomb()
    bomb.path = str(tmp_path / "ran")
    whole = state(unbroken)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1  # a bit of some weight
    cases = [good[:0], good[:100], good[: len(good) // 2], good[:-1], pickle.dumps(bomb, 2), bytes(flipped)]
    cases += [
        bomb,
        {"a": 1},
        [1],
        {**whole, "config": 3},
        {**whole, "seconds": float("nan")},
        *({**whole, name: "x"} for name in ("step", "seconds", "history", "pending")),
        {**whole, "model": {}},
        {**whole, "optimizer": {"state": 1}},
    ]
    cases += [{k: v for k, v in whole.items() if k != name} for name in ("config", "step", "history")]
    for case in cases:
        path.write_bytes(case) if isinstance(case, bytes) else torch.save(case, path)
        before = contents(tiny.out)
        said = refusal(train, tiny, True)
        assert f"{path}: expected a complete state, got " in said
        assert "weights_only" not in said  # torch's advice, which would run what is in the file
        assert contents(tiny.out) == before
    with pytest.raises(
        SystemExit, match=r"i2sb: .*state\.pt: expected a complete state, got KeyError: 'history'"
    ):
        main([*flags(tiny), "--resume"])
    assert not Path(bomb.path).exists()


# Two at once


def test_a_second_training_in_a_folder_is_refused_and_takes_nothing(tiny, unbroken, monkeypatch):  # noqa: F811
    half, said = Path(tiny.out) / f".i2sb-{'0f' * 16}.tmp.pt", []

    def others():
        half.touch()  # what the first is writing
        before = contents(tiny.out)
        said.extend(refusal(train, tiny, resume) for resume in (False, True))
        assert contents(tiny.out) == before

    at_step(monkeypatch, 4, others)
    train(tiny)
    assert said == [f"{tiny.out}: expected no other training, got one at work"] * 2
    half.unlink()
    assert contents(tiny.out).keys() == contents(unbroken.out).keys()  # there is no file of the lock
    assert_same_run(tiny, unbroken)
    assert train(tiny, resume=True)["finished"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a lock of the kernel's")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_killed_process_leaves_no_lock(tmp_path):
    folder, (read, write) = tmp_path / "run", os.pipe()
    if not (child := os.fork()):
        with faults.alone(folder):
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    with pytest.raises(TrainingError, match="expected no other training"), faults.alone(folder):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with faults.alone(folder):
        assert not contents(folder)


def test_where_a_file_system_or_windows_has_no_lock_it_goes_on_without(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks available")))
    for module in (fcntl, None):
        monkeypatch.setitem(__import__("sys").modules, "fcntl", module)
        with faults.alone(tmp_path / "run"), faults.alone(tmp_path / "run"):
            (tmp_path / "run" / "state.pt").touch()
    assert [f.name for f in tmp_path.rglob("*")] == ["run", "state.pt"]


# Signals


def test_signals_save_say_how_to_go_on_and_exit(tiny, unbroken, monkeypatch, capsys):  # noqa: F811
    tiny = changed(tiny, "my run; 'first'")
    handlers, command = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], flags(tiny)
    for at, number, code in ((1, signal.SIGINT, 130), (3, signal.SIGHUP, 129), (5, signal.SIGTERM, 143)):
        with monkeypatch.context() as patch:
            at_step(patch, at, lambda number=number: [os.kill(os.getpid(), number) for _ in "12"] and None)
            with pytest.raises(SystemExit) as stop:
                main(command)
        assert stop.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        start, command = line.split("; go on with: i2sb ")
        assert start == f"stopped by {number.name} at step {at + 1} of 9, which is saved"
        assert state(tiny)["step"] == at + 1
        command = shlex.split(command)  # as a shell does
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    main(command)
    assert_same_run(tiny, unbroken)


@pytest.mark.parametrize("at", [0, 3])
def test_a_signal_that_also_ends_the_compiler_in_a_step_is_no_fault_of_the_program(
    at,
    tiny,
    unbroken,  # noqa: F811
    monkeypatch,
    capsys,
):
    """A terminal sends Ctrl-C to g++, too, whose end torch.compile raises as an error of its own."""

    def compiling():
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("C++ compile error\n\nCommand:\ng++ ...")

    with monkeypatch.context() as patch:
        at_step(patch, at, compiling)
        with pytest.raises(SystemExit) as stop:
            main(flags(tiny))
    assert stop.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    start, command = line.split("; go on with: i2sb ")
    assert start == f"stopped by SIGINT at step {at} of 9, which is saved"
    main(shlex.split(command))
    assert_same_run(tiny, unbroken)


def test_an_error_of_a_step_without_a_signal_stays_an_error(tiny, monkeypatch):
    at_step(monkeypatch, 0, raising(RuntimeError("C++ compile error")))
    with pytest.raises(RuntimeError, match="C\\+\\+ compile error"):
        train(tiny)


def test_a_host_s_own_handler_is_called_after_the_save(tiny, monkeypatch):
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(state(tiny)["step"]))
    try:
        at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(tiny)["finished"] is False
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [2]


def test_ignored_signals_stay_ignored_and_a_third_one_interrupts():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with noted_signals() as seen:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(seen) == {signal.SIGTERM}


# Memory and disk


def too_much():
    torch.empty(10**15)


def raising(error: BaseException):
    def do(*args):
        raise error

    return do


CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 0 bytes free")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)")


@pytest.mark.parametrize("error", [CUDA, MPS, MemoryError()])
def test_every_device_s_way_to_say_that_memory_is_out_is_known(error):
    assert faults.is_out_of_memory(error)


def test_out_of_memory_says_what_to_do_and_keeps_what_was_saved(tiny, monkeypatch):
    at_step(monkeypatch, 4, too_much)
    said = refusal(train, tiny)
    assert "out of memory with 4 images a step: give a smaller --batch-size" in said
    assert state(tiny)["step"] == 3


def test_other_errors_are_not_taken_for_it(tiny, monkeypatch):
    at_step(monkeypatch, 0, raising(RuntimeError("an illegal memory access was encountered")))
    with pytest.raises(RuntimeError, match="illegal memory access") as error:
        train(tiny)
    assert not isinstance(error.value, TrainingError)


def limited_files(size: int) -> int:
    """No file may grow beyond this many bytes, as on a disk that is full; returns the limit before."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    return soft


@pytest.mark.slow
def test_a_full_disk_says_so_and_keeps_what_was_saved(tiny, unbroken, monkeypatch):  # noqa: F811
    before: list = []
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: before.extend([contents(tiny.out), limited_files(100_000)]))
        try:
            said = refusal(train, tiny)
        finally:
            limited_files(before[1])
    assert f"{tiny.out}: step 6 could not be saved (" in said
    assert "what was saved before is whole" in said
    assert contents(tiny.out) == before[0]
    with monkeypatch.context() as patch:  # room for the state and not for the weights
        patch.setattr(
            training, "save_pretrained", raising(SafetensorError("I/O error: No space left on device"))
        )
        assert "step 6 could not be saved (I/O error: No space left on device)" in refusal(train, tiny, True)
    assert train(tiny, resume=True)["finished"]
    assert_same_run(tiny, unbroken)


def test_a_disk_that_is_full_from_the_start_promises_nothing(tiny, monkeypatch):
    monkeypatch.setattr(torch, "save", raising(OSError("No space left on device")))
    said = refusal(train, tiny)
    assert "could not be saved (No space left on device); make room, then start again: nothing was" in said
    assert not Path(tiny.out).exists()
    monkeypatch.undo()
    assert train(tiny)["finished"]  # as told


# Crashes


@pytest.mark.slow
def test_a_crash_between_any_two_files_of_a_save_loses_nothing(tiny, monkeypatch):
    """os.replace is where a file appears: the process dies just before the nth."""
    whole = changed(tiny, "whole", steps=3, save_every=2)
    train(whole)
    for nth in (1, 6, 8):  # of the four files after step 2, the contact sheet, the four after step 3
        config, count = changed(whole, f"broken-{nth}"), iter(range(100))

        def replace(source, target, own=os.replace, count=count, nth=nth):
            if next(count) == nth:
                raise KeyboardInterrupt
            own(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        left = Path(config.out) / f".i2sb-{'0f' * 16}.tmp.pt"  # by a killed process
        theirs = Path(config.out) / ".todo.tmp.md", Path(config.out) / ".cache.tmp"
        left.touch()
        theirs[0].touch()
        theirs[1].mkdir()
        train(config, resume=True)
        assert_same_run(whole, config)
        assert weights(config) == weights(whole)
        assert sorted(Path(config.out).glob(".*")) == sorted(theirs)


def weights(config: TrainConfig) -> tuple[int, bytes]:
    """The exported weights, and of which step they say they are."""
    return load_pretrained(config.out).record["step"], (
        Path(config.out) / "model-1-of-1.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="benchmarks/kill.py forks")
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(tmp_path, i2sb):
    """Twice here, once while it saves; benchmarks/kill.py itself does it twenty times.

    And with any number of processes and parts of a batch, torchrun's among them, it ends as one alone does.
    """
    process = i2sb(
        "--kills", 2, "--steps", 5, "--out", tmp_path / "kill.json", module=[ROOT / "benchmarks/kill.py"]
    )
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    print(*said)  # shown, with the seed, where what follows fails
    result = json.loads((tmp_path / "kill.json").read_text())
    assert (result["kills"], result["identical"]) == (2, True)
    assert result["while_saving"] >= 1
    two = result["two_processes"]  # of which one got SIGTERM
    assert (two["codes"], two["codes_after"]) == ([143, 143], [0, 0])
    first, then = two["steps"]
    assert 1 <= first < then == first + 1 <= 5
    assert two["losses"][0] == pytest.approx(two["losses"][1], rel=1e-5)
    assert two["apart"] < 1e-4


# The host


def test_training_leaves_its_host_as_it_was(tiny):
    host = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    try:
        net = torch.nn.Linear(2, 2)
        net, optimizer = host.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
        before = torch.get_rng_state()
        train(dataclasses.replace(tiny, dropout=0.3))
        assert torch.equal(torch.get_rng_state(), before)
        assert (host.mixed_precision, host.gradient_accumulation_steps) == ("bf16", 4)
        assert host.state.mixed_precision == "bf16"
        with host.accumulate(net):
            host.backward(net(torch.ones(1, 2)).sum())
            optimizer.step()
        assert not host.sync_gradients
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.slow
def test_threads_that_train_side_by_side_do_not_take_each_other_s_numbers(tiny):
    alone, *others = (changed(tiny, str(i), dropout=0.5, steps=3) for i in range(3))
    train(alone)
    before = torch.get_rng_state()
    threads = [threading.Thread(target=train, args=(config,)) for config in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    for config in others:
        assert_same_run(alone, config)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_child_that_lives_on_holds_no_lock(tmp_path):
    with faults.alone(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with faults.alone(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
