"""Gives damaged and hostile files to every reader, and prints what came of it.

    python tests/mutations --count 2000 --seed 0
    python tests/mutations --count 100 --readers gallery recipe --json mutations.json

Exit code 1 if a reader failed in any other way than by one line that names the file, gave something else without a
word, ran what the file said, hung, or took more than 1 GiB.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the tests, not this folder

import torch

from mutations.artefacts import prepare
from mutations.campaign import campaign, table
from mutations.readers import READERS


def main() -> None:
    """Runs the campaign."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of what is changed, and where")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    args = parser.parse_args()
    folder, started = Path(tempfile.mkdtemp(prefix="mutations-")), time.monotonic()
    prepare(folder / "whole")
    tallies = campaign(folder, args.readers, args.count, args.seed)
    print(table(tallies))
    findings = [finding for tally in tallies.values() for finding in tally.findings]
    count = sum(tally.mutations for tally in tallies.values())
    print(f"{count} mutations in {(time.monotonic() - started) / 60:.1f} minutes, {len(findings)} findings", flush=True)
    if args.json:
        rows = [{"reader": name, **asdict(tally)} for name, tally in tallies.items()]
        args.json.write_text(json.dumps({"mutations": count, "seed": args.seed, "readers": rows}, indent=1) + "\n")
    shutil.rmtree(folder)
    if findings:
        sys.exit(1)


if __name__ == "__main__":
    main()
