"""Processes receive tensors as they were sent."""

from pathlib import Path

from conftest import launch

GATHERED = """
import torch
import torch.distributed as dist
from distill import comm

dist.init_process_group("gloo")
wholes = torch.tensor([[2**24 + 1, -1], [2**53 + 1, 2**63 - 1], [0x7FC00001_FF800001, -(2**63)], [0, 2**31 + 1]])
tables = {
    "wholes": wholes,
    "bytes": torch.arange(4, dtype=torch.uint8) + 252,
    "true": torch.tensor([[[True, False]], [[False, False]], [[True, True]], [[False, True]]]),
    "floats": torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_(),
    "halves": torch.linspace(-1, 1, 4).to(torch.bfloat16).requires_grad_(),
    "precise": torch.linspace(-1, 1, 4, dtype=torch.float64) / 3,
}
own = slice(2 * comm.rank(), 2 * comm.rank() + 2)
found = comm.gather({name: table[own] for name, table in tables.items()})
for name, table in tables.items():
    dtype = torch.float32 if name == "halves" else table.dtype
    assert found[name].dtype == dtype and torch.equal(found[name], table.to(dtype)), (name, found[name])
    assert found[name].requires_grad == table.requires_grad, name
factors = torch.tensor([1 + 2**-9, 3, 1 + 3 * 2**-9, 5])  # the first of each rank's are not numbers of bfloat16
loss = (found["floats"] * torch.arange(12).reshape(4, 3)).sum()
(loss + (found["halves"] * factors * (1 + comm.rank() * 2**-8)).sum()).backward()
wanted = torch.zeros(4, 3)
wanted[own] = 2 * torch.arange(12.0).reshape(4, 3)[own]  # the sum over two ranks
assert torch.equal(tables["floats"].grad, wanted), tables["floats"].grad
once = (factors + factors * (1 + 2**-8)).to(torch.bfloat16)  # rounded after the sum
assert torch.equal(tables["halves"].grad[own], once[own]), (tables["halves"].grad, once)
twice = factors.to(torch.bfloat16) + (factors * (1 + 2**-8)).to(torch.bfloat16)
assert not torch.equal(once, twice), "the numbers tell the two apart"
if comm.rank() == 0:
    print("all as sent")
comm.close()
"""


def test_what_is_gathered_is_what_was_sent_to_the_last_bit(tmp_path: Path):
    """Also whole numbers that fp32 cannot hold, and those whose bits are a NaN's; halves have an exact gradient."""
    script = tmp_path / "gathered.py"
    script.write_text(GATHERED)
    assert "all as sent" in launch(2, script).stdout
