"""What is said where there is no GPU for a process that should have one."""

import pytest
import torch

from geochip import gpus
from geochip.errors import InputError

OF_SLURM = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One without a GPU, in no job."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "has_driver", lambda: True)
    for name in (*OF_SLURM, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def cuda_says(monkeypatch, words):
    def init():
        raise RuntimeError(words)

    monkeypatch.setattr(torch.cuda, "init", init)


def test_without_a_gpu_auto_is_the_cpu():
    assert gpus.usable("auto", "train.device") == 0
    assert gpus.usable("cpu", "train.device") == 0


def test_as_many_as_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [gpus.usable(asked, "train.device") for asked in ("auto", "cuda", "cpu")] == [4, 4, 0]


@pytest.mark.parametrize(("name", "value"), list(zip(OF_SLURM, ("1", "0", "0,1"), strict=True)))
def test_a_gpu_of_slurm_that_cannot_be_used_is_no_reason_to_compute_on_the_cpu(monkeypatch, name, value):
    cuda_says(monkeypatch, "No CUDA GPUs are available")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputError) as error:
        gpus.usable("auto", "infer.device")
    assert str(error.value) == (
        "Slurm gave this job a GPU, which cannot be used (infer.device): PyTorch says: No CUDA GPUs are available; there "
        "is a driver: see `nvidia-smi -L`; CUDA_VISIBLE_DEVICES is 0; or compute on the CPU: infer.device: cpu"
    )
    assert gpus.usable("cpu", "infer.device") == 0


@pytest.mark.parametrize("value", ["", "0"])
def test_a_job_without_a_gpu_computes_on_the_cpu(monkeypatch, value):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", value)
    monkeypatch.setenv("SLURM_JOB_GPUS", "")
    assert gpus.usable("auto", "train.device") == 0


def test_a_driver_that_is_too_old(monkeypatch):
    cuda_says(monkeypatch, "The NVIDIA driver on your system is too old (found version 12020).\nPlease update your GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    with pytest.raises(InputError) as error:
        gpus.usable("cuda", "train.device")
    assert str(error.value) == (
        "train.device: 'cuda' is not possible: the driver, which is for CUDA 12.2, is too old for this PyTorch, which is "
        "built for CUDA 13.2: install one that is built for CUDA 12 (pytorch.org tells the command), or ask the site's "
        "staff for a newer driver; or compute on the CPU: train.device: cpu"
    )


def test_a_container_without_the_driver(monkeypatch):
    cuda_says(monkeypatch, "Found no NVIDIA driver on your system")
    monkeypatch.setattr(gpus, "has_driver", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    with pytest.raises(InputError, match="there is no driver: start containers with --nv, else ask the site's staff"):
        gpus.usable("auto", "train.device")


def test_a_pytorch_for_cpus(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="this PyTorch is built for the CPU only: install one that is built with CUDA"):
        gpus.usable("cuda", "train.device")
