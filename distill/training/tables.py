"""Named tensors of a batch, by what they are of, gathered over all processes in one collective."""

from torch import Tensor

from distill import comm

Tables = dict[str, dict[str, Tensor]]  # named tensors, by what they are of; a table's have equally many rows


def gather(tables: Tables) -> Tables:
    """Return all ranks' rows of the tables, of which each has equally many, in one collective with a true gradient.

    Floats come out in float32 or better.
    """
    flat = {f"{table}.{name}": value for table, rows in tables.items() for name, value in rows.items()}
    whole, found = comm.gather(flat) if flat else {}, Tables()
    for name, value in whole.items():
        table, _, field = name.partition(".")
        found.setdefault(table, {})[field] = value
    return found


def of_sides(features: dict[str, Tensor], sides: tuple[str, ...]) -> Tables:
    """Return those of `side.name` that are of these sides, by side."""
    return {
        side: {name.removeprefix(f"{side}."): value for name, value in features.items() if name.startswith(f"{side}.")}
        for side in sides
    }


def numbered(of: str, labels: list[dict[str, Tensor]]) -> Tables:
    """Return the rows of several teachers under what they are of and the teacher's place: `pair labels 0`."""
    return {f"{of} labels {number}": rows for number, rows in enumerate(labels)}
