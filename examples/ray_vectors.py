"""Encodes the videos of a folder with a release, in batches on the workers of a Ray cluster, into Parquet files.

    python examples/ray_vectors.py runs/my-teachclip/release my/videos vectors --workers 8 --gpus 1

Release and videos must have the same paths on all hosts. Needs `pip install 'ray[data]'` beside this project. A row has
`video` (path within the folder), `vector` (unit length; None of a video that cannot be read) and `reason` (why not).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.video import EXTENSIONS
from distill.errors import VideoError


def videos_of(folder: Path) -> list[dict[str, str]]:
    """Return a row for every video file of a folder and its sub-folders."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    return [{"video": str(path.relative_to(folder))} for path in paths]


class Encoder:
    """A worker: loads the release once, then encodes batch after batch."""

    def __init__(self, release: str, folder: str, device: str):
        from distill.release import load

        self.release, self.folder = load(release, device), Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with the columns `vector` and `reason`."""
        vectors: list[np.ndarray | None] = []
        reasons = []
        for video in batch["video"]:
            try:
                found = self.release.encode_video(self.folder / video)
                vectors.append(self.release.model.index_vectors(found)[0].numpy(force=True))
                reasons.append("")
            except VideoError as reason:
                vectors.append(None)
                reasons.append(str(reason))
        return {**batch, "vector": vectors, "reason": reasons}


def main() -> None:
    """Parse the command line and run the map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, help="of a student with one vector a video")
    parser.add_argument("videos", type=Path, help="folder of video files")
    parser.add_argument("out", type=Path, help="folder of the Parquet files")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with the release in memory")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each (a part of one, or 0 for the CPU)")
    args = parser.parse_args()
    import ray.data

    told = (str(args.release.resolve()), str(args.videos.resolve()), "cuda" if args.gpus else "cpu")
    ray.data.from_items(videos_of(args.videos)).map_batches(
        Encoder, fn_constructor_args=told, batch_size=32, concurrency=args.workers, num_gpus=args.gpus
    ).write_parquet(str(args.out.resolve()))


if __name__ == "__main__":
    main()
