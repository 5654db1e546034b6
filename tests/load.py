"""Load on a running server: so many clients that ask again as soon as they are answered, for so many seconds.

    python tests/load.py http://127.0.0.1:8000/ --clients 50 --seconds 60

Each client searches, then fetches the first bytes of the best video, as the page does. Prints the times of the searches
and whatever was not answered with 200 or 206; ends with 1 if there was any.
"""

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

WORDS = ("red", "blue", "green", "star", "apple", "chick", "octopus", "engine", "falls", "spins", "jumps", "on", "a")


@dataclass
class Report:
    """Seconds that each search took, and what went wrong how often."""

    searches: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        if len(self.searches) < 2:
            return f"{len(self.searches)} searches answered; wrong: {dict(self.wrong)}"
        at = statistics.quantiles(self.searches, n=100)
        times = f"p50 {1000 * at[49]:.0f} ms, p95 {1000 * at[94]:.0f} ms, longest {1000 * max(self.searches):.0f} ms"
        return f"{len(self.searches)} searches: {times}; wrong: {dict(self.wrong) or 'none'}"


async def load(url: str, clients: int, seconds: float) -> Report:
    """Runs the clients and reports."""
    report = Report()
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        await asyncio.gather(*(_ask(client, number, until, report) for number in range(clients)))
    return report


async def _ask(client: httpx.AsyncClient, number: int, until: float, report: Report) -> None:
    asked = 0
    while time.monotonic() < until:
        asked += 1
        query = " ".join(WORDS[(number * 7 + asked * step) % len(WORDS)] for step in (1, 3, 5, 8))
        try:
            began = time.monotonic()
            answer = await client.post("search", json={"query": query, "k": 12})
            report.searches.append(time.monotonic() - began)
            if answer.status_code != 200:
                report.wrong[f"search {answer.status_code}"] += 1
                continue
            hits = answer.json()["results"][0]["hits"]
            video = await client.get(hits[0]["url"], headers={"Range": "bytes=0-65535"})
            if video.status_code != 206:
                report.wrong[f"video {video.status_code}"] += 1
        except httpx.HTTPError as error:
            report.wrong[type(error).__name__] += 1


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, loads, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="where tools/serve.py listens")
    parser.add_argument("--clients", type=int, default=50, metavar="N", help="at once (default 50)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="how long (default 60)")
    args = parser.parse_args(argv)
    report = asyncio.run(load(args.url, args.clients, args.seconds))
    print(f"{args.clients} clients, {args.seconds:g} s: {report}")
    raise SystemExit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
