"""Named tensors of a batch, by what they are of, gathered over all processes in one collective."""

from torch import Tensor

from distill import comm
from distill.model.similarity import precise

Tables = dict[str, dict[str, Tensor]]  # named tensors of equally many rows, by what they are of


def gather(tables: Tables) -> Tables:
    """Return all ranks' rows of the tables, which have equally many, in one collective with a true gradient."""
    flat = {f"{table}.{name}": value for table, rows in tables.items() for name, value in rows.items()}
    whole, found = comm.gather(flat) if flat else {}, Tables()
    for name, value in whole.items():
        table, _, field = name.partition(".")
        found.setdefault(table, {})[field] = precise(value) if value.is_floating_point() else value
    return found


def of_sides(features: dict[str, Tensor], sides: tuple[str, ...]) -> Tables:
    """Return those of `side.name` that are of these sides, by side."""
    return {
        side: {name.removeprefix(f"{side}."): value for name, value in features.items() if name.startswith(f"{side}.")}
        for side in sides
    }


def numbered(labels: list[dict[str, Tensor]]) -> Tables:
    """Return the rows of several teachers, by the teacher's place."""
    return {str(number): rows for number, rows in enumerate(labels)}
