"""Packs in shards of three videos, so that a small corpus has many: `python pack.py CSV VIDEOS OUT WORKERS`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from distill.data.sampler import Clip4ClipSampler
from distill.errors import door
from distill.packing.packing import PackConfig, pack

PER_SHARD = 3


def main() -> None:
    """Packs what the command line says."""
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=12), size=64, per_shard=PER_SHARD)
    annotations, videos, out, workers = sys.argv[1:]
    pack(Path(annotations), "csv", Path(videos), Path(out), config, workers=int(workers))


if __name__ == "__main__":
    door(main)
