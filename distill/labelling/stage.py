"""A stage of a label job: shards of one folder, which any number of processes make together.

There are no locks, no process group and no leader. Each process looks at which shards are missing and makes its share
of them. If no shard appears for a while, it makes the missing ones of the others too: a process may have been lost, or
may have looked at the folder at another moment. A shard made twice has the same bytes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.data.building import ShardContent, build
from distill.labelling.sealing import recorded
from distill.log import progress
from distill.remote import Place

LOOK = 0.5  # seconds between two looks at the folder
SILENCE = 10.0  # seconds, beside three times the slowest shard, after which nobody seems to make what is missing


@dataclass(frozen=True)
class Stage:
    """The shards `names` of `folder`; `content` makes the samples of one."""

    folder: Place
    names: Sequence[str]
    content: Callable[[str], ShardContent]
    title: str  # of the progress bar

    def missing(self) -> list[str]:
        """Return the shards that the folder has no record of."""
        return [name for name in self.names if not recorded(self.folder, name)]

    def make(self, names: Sequence[str]) -> float:
        """Make those of these shards that are not there yet; returns the seconds of the slowest."""
        slowest = 0.0
        for name in progress(names, self.title):
            start = time.monotonic()
            build(self.folder, name, lambda name=name: self.content(name))
            slowest = max(slowest, time.monotonic() - start)
        return slowest

    def complete(self, rank: int, world: int) -> bool:
        """Return once no shard is missing. False if this process last waited for others instead of making shards.

        After a silence each process takes up the remaining shards from another place in the list on.
        """
        missing = self.missing()
        slowest = self.make(missing[rank::world])
        while missing := self.missing():
            if self._wait(SILENCE + 3 * slowest):
                return False
            first = rank * len(missing) // world
            self.make([*missing[first:], *missing[:first]])
        return True

    def _wait(self, silence: float) -> bool:
        """Wait for other processes as long as they make shards; returns whether all shards came."""
        missing, since = self.missing(), time.monotonic()
        while missing and time.monotonic() - since < silence:
            time.sleep(LOOK)
            now = self.missing()
            since = time.monotonic() if len(now) < len(missing) else since
            missing = now
        return not missing
