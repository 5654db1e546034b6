"""The cost of a training: operations as counted by hand, and energy as counters of real files and libraries say."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.training import cost
from distill.training.cost import Meter, counted, energy_counters


def test_operations_are_those_of_a_hand_count():
    torch.manual_seed(0)
    rows = torch.randn(4, 6)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    forward = 2 * 4 * 6 * 5 + 2 * 4 * 5 * 3
    assert counted(lambda: model(rows))[1] == forward
    backward = 2 * 4 * 5 * 3 + 2 * 4 * 5 * 3 + 2 * 4 * 6 * 5  # second weight, what it read, first weight
    assert counted(lambda: model(rows).sum().backward())[1] == forward + backward
    picture = nn.Conv2d(3, 4, 2, stride=2, bias=False)
    each = 2 * (2 * 2) * 4 * (3 * 2 * 2)  # places, channels out, numbers read
    assert counted(lambda: picture(torch.randn(1, 3, 4, 4)).sum().backward())[1] == 2 * each
    query, key, value = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 5 * 5 * 8  # of one of the two matrix products of attention, both heads
    attended = counted(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())[1]
    assert attended == 2 * product + 5 * product  # backward computes the weights again


def test_counting_changes_no_bit():
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    rows = torch.randn(3, 7, 32)
    layer(rows).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    counted(lambda: layer(rows).square().sum().backward())
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(expected, layer.parameters(), strict=True))


def package(folder: Path, number: int, microjoules: int) -> Path:
    """A processor package as Linux shows it, and below it a part of it, which must not be counted twice."""
    place = folder / f"intel-rapl:{number}"
    for name in (place, folder / f"intel-rapl:{number}:0"):
        name.mkdir(parents=True, exist_ok=True)
        (name / "energy_uj").write_text(str(microjoules))
    return place / "energy_uj"


def test_energy_of_processors_is_added_up_also_where_a_counter_begins_again(tmp_path: Path):
    first, second = package(tmp_path, 0, 5_000_000), package(tmp_path, 1, 100)
    meter = Meter(counters=energy_counters(tmp_path), joules_before=1.0)
    first.write_text("9000000")
    second.write_text("1000100")
    assert meter.joules() == pytest.approx(1 + 4 + 1)
    first.write_text("1000")  # it was full: what came before it was read is not known
    meter.tick()
    first.write_text("2001000")
    assert meter.joules() == pytest.approx(1 + 4 + 1 + 2)


def test_energy_is_unknown_without_counters_and_after_a_part_without_them(tmp_path: Path, monkeypatch):
    assert energy_counters(tmp_path) == []
    assert Meter(counters=[]).joules() is None
    package(tmp_path, 0, 5)
    assert Meter(counters=energy_counters(tmp_path), joules_before=None).joules() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("nothing")
    assert energy_counters(tmp_path) == []
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process of the host reads them for all
    assert energy_counters(tmp_path) == [] and Meter().joules() == 0.0


NVML = """
#include <string.h>
static unsigned long long energy = 1000;
static int device;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { *handle = &device; return strcmp(uuid, "GPU-7") != 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *found) {
    if (handle != &device) return 2;
    energy += 2500; *found = energy; return 0;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_energy_of_a_gpu_is_read_from_its_driver(tmp_path: Path):
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    (read,) = cost._of_gpu(str(library), "GPU-7")
    assert read() - read() == -2.5
    assert cost._of_gpu(str(library), "GPU-8") == []
    assert cost._of_gpu("libnothing.so.1", "GPU-7") == []
