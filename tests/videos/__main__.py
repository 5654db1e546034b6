"""Draws videos and compares every frame that is chosen, its seconds and its pixels with a decoder of all frames.

    python tests/videos --count 200 --seed 0

Exit code 1 if anything differs; a finding names its seed, which --seed N --count 1 draws again.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the tests, not this folder

from videos.campaign import campaign


def main() -> None:
    """Draw, and print a table and the findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first video; each next one has the next")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tallies = campaign(Path(folder), range(args.seed, args.seed + args.count))
    table = Counter(name for names, _ in tallies for name in names)
    for name, count in sorted(table.items()):
        print(f"{count:5d}  {name}")
    findings = [finding for _, findings in tallies for finding in findings]
    print(f"{len(tallies)} videos in {(time.monotonic() - started) / 60:.1f} minutes, {len(findings)} findings")
    print("\n".join(findings[:20]))
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
