"""Facts of the machine: present, true, and free of secrets."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlaprof.machine import environment
from mlaprof.records import Environment


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A committed checkout with mlaprof/ and kernels/."""
    for name in ("mlaprof/__init__.py", "kernels/topk.py"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "One")
    return tmp_path


def test_a_snapshot_tells_this_machine():
    """It survives its own JSON, and its facts are those of this process."""
    found = environment.snapshot()

    assert Environment.model_validate_json(found.model_dump_json()) == found
    assert found.packages["numpy"] == importlib.metadata.version("numpy")
    assert found.cpu_count == len(os.sched_getaffinity(0))
    assert found.memory_bytes > 2**28
    assert found.cpu and found.os
    assert len(found.kernel_source_sha256) == 64


def test_a_snapshot_with_gpus_describes_them(pynvml):
    """What NVML tells is in it."""
    found = environment.snapshot()

    assert [gpu.compute_capability for gpu in found.gpus] == ["9.0", "9.0"]
    assert found.nvml == "13.580.159"
    assert (found.used_gpu, found.cuda_driver, found.confidential_computing) == (0, "13.1", False)
    assert pynvml.open == 0


def test_the_gpu_that_cuda_uses_names_the_processor(pynvml, monkeypatch):
    """Not the first of the machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    pynvml._answers["nvmlDeviceGetName"] = lambda handle: ("A99", "B99")[handle]

    found = environment.snapshot()

    assert (found.used_gpu, found.processor("cuda")) == (1, "B99")
    assert found.processor("cpu") == found.cpu


def test_a_snapshot_of_an_older_run_is_read():
    """What it did not ask for is unknown, and its processor was the first GPU."""
    gpu = {"name": "H", "uuid": "G", "driver": "1", "compute_capability": "9.0", "memory_bytes": 1}
    found = environment.snapshot().model_dump(exclude={"used_gpu", "container", "load_average", "gpus"})

    old = Environment.model_validate({**found, "gpus": (gpu,)})

    assert (old.used_gpu, old.container, old.load_average, old.gpus[0].sm_count) == (None,) * 4
    assert old.processor("cuda") == "H"


def test_other_processes_are_those_on_the_gpu_in_use(pynvml, monkeypatch):
    """Another GPU of the machine may be busy; what this process and its children have there is our own."""
    stranger = SimpleNamespace(pid=2**22 + 1, usedGpuMemory=1)  # Linux numbers no process above 2**22
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ours = [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in (os.getpid(), child.pid)]
        pynvml.processes_of = {0: [*ours, stranger], 1: ours}

        assert environment.other_processes() == (stranger.pid,)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert environment.other_processes() == ()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert environment.other_processes() == ()
        assert child.stdin is not None
        child.stdin.close()


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("cgroup", "0::/\n", None),
        ("cgroup", f"9:name=systemd:/\n3:cpu:/docker/{'a1' * 32}\n", "a1" * 32),
        ("cgroup", f"0::/system.slice/cri-containerd-{'b2' * 32}.scope\n", "b2" * 32),
        ("cgroup", f"0::/user.slice/{'a1' * 33}\n", None),
        ("mountinfo", f"5 4 8:1 /lib/docker/containers/{'c3' * 32}/hostname /etc/hostname rw - ext4 x rw\n", "c3" * 32),
        ("mountinfo", f"5 4 0:8 / /lib/docker/containers/{'c3' * 32}/mounts/shm rw - tmpfs shm rw\n", None),
        (None, "", None),
    ],
)
def test_a_container_is_told_by_its_id(tmp_path, file, text, found):
    """A host that has containers is none."""
    if file is not None:
        (tmp_path / file).write_text(text)

    assert environment._container(tmp_path) == found


def test_a_clean_checkout_has_a_commit_and_is_not_dirty(repository):
    """The commit alone names the code."""
    commit, dirty = environment._git(repository)

    assert commit is not None and len(commit) == 40
    assert dirty is False


@pytest.mark.parametrize("name", ["kernels/topk.py", "kernels/new.py", "mlaprof/new.py"])
def test_a_changed_or_new_source_is_dirty(repository, name):
    """Untracked sources count: they run as well."""
    (repository / name).write_text("2\n")

    assert environment._git(repository)[1] is True


def test_results_do_not_make_a_checkout_dirty(repository):
    """A sweep writes results/ into its own checkout."""
    (repository / "results").mkdir()
    (repository / "results" / "run.mlaprof").write_text("x")

    assert environment._git(repository)[1] is False


def test_an_installed_copy_inside_a_foreign_checkout_has_no_commit(tmp_path):
    """site-packages in somebody's repository is not described by their commit."""
    git(tmp_path, "init", "-q")
    package = tmp_path / ".venv" / "mlaprof"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")

    assert environment._git(package.parent) == (None, None)


def test_outside_git_there_is_no_commit(tmp_path):
    """None, not an error."""
    assert environment._git(tmp_path) == (None, None)


def test_git_variables_do_not_point_elsewhere(repository, tmp_path_factory, monkeypatch):
    """A snapshot inside a git hook describes its own checkout."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))

    assert environment._git(repository)[1] is False


def test_a_machine_without_git_has_no_commit(repository, monkeypatch):
    """The program may be missing."""
    monkeypatch.setenv("PATH", "")

    assert environment._git(repository) == (None, None)


def test_the_kernel_hash_changes_with_content_and_name(tmp_path):
    """Any edit of kernels/*.py is another kernel; other files are not."""
    (tmp_path / "a.py").write_text("1")
    first = environment.kernel_source_sha256(tmp_path)
    (tmp_path / "notes.md").write_text("1")
    assert environment.kernel_source_sha256(tmp_path) == first

    (tmp_path / "a.py").write_text("2")
    second = environment.kernel_source_sha256(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    third = environment.kernel_source_sha256(tmp_path)

    assert len({first, second, third}) == 3


def test_behaviour_variables_hold_no_secret():
    """What steers the software is recorded; tokens, keys and passwords never are."""
    given = {
        "TRITON_DEFAULT_FP_FUSION": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_CACHE_DIR": "x" * 5000,
        "NVIDIA_API_KEY": "s3cret",
        "TRITON_AUTH_TOKEN": "s3cret",
        "TORCH_INDEX": "https://me:s3cret@host/simple",
        "HOME": "/home/me",
        "MY_CUDA_NOTE": "x",
        "OMPI_MCA_plm": "isolated",
        "NVIDIA_REQUIRE_CUDA": "cuda>=13.0",
    }

    found = environment.behaviour_variables(given)

    assert list(found) == [
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_DEFAULT_FP_FUSION",
    ]
    assert "s3cret" not in str(found)
    assert len(found["TORCHINDUCTOR_CACHE_DIR"]) == 1000


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.11.0+cu130", True),
        ("2.13.0", True),
        ("2.13.0a0+git1234", True),
        ("2.13.0+cpu", False),
        ("2.13.0+cpu.cxx11.abi", False),
        ("2.13.0+rocm6.4", False),
        (None, False),
    ],
)
def test_the_build_of_torch_is_told_by_its_tag(version, expected):
    """+cpu and +rocm cannot use an NVIDIA GPU."""
    assert environment.built_for_cuda(version) is expected


@pytest.mark.parametrize(
    ("version", "visible", "expected"),
    [
        ("2.11.0+cu130", None, True),
        ("2.11.0+cu130", "", False),
        ("2.11.0+cpu", None, False),
        (None, None, False),
    ],
)
def test_cuda_is_present_with_a_visible_gpu_and_a_cuda_build(pynvml, monkeypatch, version, visible, expected):
    """Both are needed, and neither needs torch."""
    monkeypatch.setattr(environment, "_version", lambda name: version)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert environment.cuda_present() is expected


def test_cuda_is_not_present_without_a_driver(pynvml):
    """The reason is NVML's, the answer is no."""
    pynvml.init_error = RuntimeError("Driver Not Loaded")

    assert environment.cuda_present() is False


def test_the_cpu_has_a_name_without_cpuinfo(tmp_path):
    """Where /proc tells no model, the architecture stands in."""
    (tmp_path / "cpuinfo").write_text("processor : 0\nBogoMIPS : 50\n")

    assert environment._cpu_model(tmp_path / "cpuinfo")
    assert environment._cpu_model(tmp_path / "missing")


def test_the_machine_is_described_without_torch(checkout):
    """The parent looks at the machine, so looking must not open a CUDA context."""
    script = (
        "import sys; from mlaprof import store; from mlaprof.machine import checks, environment;"
        "environment.snapshot(); environment.cuda_present(); assert 'torch' not in sys.modules"
    )
    path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": path})
