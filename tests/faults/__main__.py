"""Kills packing, label dumps, training, changes of galleries and servers at random points; prints what came of it.

    python tests/faults --kills 200 --seed 0
    python tests/faults --kills 50 --jobs dump "train on 2" append serve --json faults.json

Exit code 1 if anything that was started again ended differently, hung, or left something behind.
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

from faults.campaign import campaign, table
from faults.setting import KINDS, prepare, small_world


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the points at which is killed")
    parser.add_argument("--jobs", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    args = parser.parse_args()
    folder, started = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    jobs = prepare(folder, small_world(folder / "world"), args.jobs, clips=30)
    tallies = campaign(jobs, args.kills, args.seed, folder / "killed")
    print(table([job for job, _ in jobs], tallies))
    failures = [failure for tally in tallies for failure in tally.failures]
    print(*failures, sep="\n")
    kills = sum(tally.kills for tally in tallies)
    print(f"{kills} kills in {(time.monotonic() - started) / 60:.1f} minutes, {len(failures)} failures", flush=True)
    if args.json:
        rows = [
            {"job": job.name, **asdict(tally), "processes": sorted(tally.processes)}
            for (job, _), tally in zip(jobs, tallies, strict=True)
        ]
        args.json.write_text(json.dumps({"kills": kills, "seed": args.seed, "jobs": rows}, indent=1) + "\n")
    if failures:
        sys.exit(f"what failed was kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
