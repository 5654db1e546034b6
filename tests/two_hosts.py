"""Tries launches over two hosts for real: two network namespaces with addresses, names and ssh servers of their own.

    make two-hosts        or, as root: python tests/two_hosts.py

Needs Linux, root, and ip (iproute2), sshd and ssh (OpenSSH) and pdsh. The hosts share one folder. A recipe is trained
by `deepspeed --hostfile` over ssh and by one DeepSpeed launcher started on each host, and labels are written by
`torchrun --nnodes`; each must equal what one process on one host gives. Everything that was set up is removed again.
"""

import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import World, make_towers, python, steps, tree_bytes  # noqa: E402

from distill.data.sampler import Clip4ClipSampler  # noqa: E402
from distill.packing.packing import PackConfig, pack  # noqa: E402

HOSTS = {"distill-a": "10.77.0.1", "distill-b": "10.77.0.2"}
BRIDGE = "distill0"
FIRST = next(iter(HOSTS))
PORT = "29517"
MINUTES = 5
NEEDED = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "unshare", "hostname")


def main() -> None:
    """Sets up the hosts, launches, compares, prints a line each."""
    missing = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing or os.geteuid() != 0:
        raise SystemExit(f"two hosts cannot be had here: {', '.join(missing) + ' missing' if missing else 'not root'}")
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as name, hosts(Path(name)) as environment:
        folder = Path(name)
        world = corpus(folder)
        recipe = world.recipe("one", "xclip", folder / "runs")
        python("distill/run.py", recipe)
        one = steps(folder / "runs" / "one")

        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(folder / "hostfile")]
        launcher += ["--master_addr", HOSTS[FIRST], "--master_port", PORT]
        on(FIRST, [*launcher, "distill/run.py", str(recipe), "name=ssh"], environment)
        report("deepspeed --hostfile (pdsh over ssh)", one, steps(folder / "runs" / "ssh"))

        each = [[*launcher, "--no_ssh", "--node_rank", str(rank)] for rank in range(len(HOSTS))]
        together([[*words, "distill/run.py", str(recipe), "name=each", "train.zero=2"] for words in each], environment)
        report("deepspeed --no_ssh on each host, ZeRO 2", one, steps(folder / "runs" / "each"))

        dump = ["tools/dump_soft_labels.py", str(folder / "runs/one/release"), str(world.frames["train"]), "--out"]
        python(*dump, folder / "labels-one")
        rendezvous = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv-backend", "c10d"]
        rendezvous += ["--rdzv-endpoint", f"{HOSTS[FIRST]}:{PORT}", "--rdzv-id", "labels"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
        together([[*torchrun, *dump, str(folder / "labels-two")] for _ in HOSTS], environment)
        same = tree_bytes(folder / "labels-one") == tree_bytes(folder / "labels-two")
        print(f"torchrun --nnodes 2, labels: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
        if not same:
            raise SystemExit(1)


def corpus(folder: Path) -> World:
    """A corpus of 32 training clips, packed in several shards, and random towers."""
    made = folder / "corpus"
    python("tools/make_demo.py", "--out", made, "--clips", "32", "--seed", "3")
    frames = {split: folder / "frames" / split for split in ("train", "val", "test")}
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip"), size=64, per_shard=8)
    for split, out in frames.items():
        pack(made / f"{split}.csv", "msrvtt", made / "videos", out, config)
    return World(folder, made, frames, make_towers(folder / "towers"))


def report(title: str, one: list[dict], two: list[dict]) -> None:
    """Prints the largest difference of the losses; more than rounding ends the command."""
    assert len(one) == len(two), f"{title}: {len(two)} steps, expected {len(one)}"
    largest = max(abs(a["total"] - b["total"]) / abs(a["total"]) for a, b in zip(one, two, strict=True))
    print(f"{title}: {len(two)} steps on 2 hosts, losses differ by {largest:.1e} at most", flush=True)
    if not math.isclose(one[0]["total"], two[0]["total"], rel_tol=1e-5) or largest > 1e-4:
        raise SystemExit(1)


def on(host: str, command: list[str], environment: dict[str, str]) -> None:
    """Runs a command on one host, to its end."""
    inside = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
    done = subprocess.run(
        [*inside, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60 * MINUTES
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} on {host}: exit code {done.returncode}\n{done.stderr[-3000:]}")


def together(commands: list[list[str]], environment: dict[str, str]) -> None:
    """Runs one command on every host at the same time."""
    inside = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *inside, host, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host, command in zip(HOSTS, commands, strict=True)
    ]
    said = [process.communicate(timeout=60 * MINUTES)[0] for process in running]
    for host, process, text in zip(HOSTS, running, said, strict=True):
        if process.returncode:
            raise SystemExit(f"{' '.join(process.args[9:])} on {host}: code {process.returncode}\n{text[-3000:]}")


@contextlib.contextmanager
def hosts(folder: Path) -> Iterator[dict[str, str]]:
    """Two namespaces on a bridge, each with an ssh server; yields the environment of a launch."""
    key = folder / "key"
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    (folder / "hostfile").write_text("".join(f"{host} slots=1\n" for host in HOSTS))
    names = "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in HOSTS.items())
    Path("/run/sshd").mkdir(exist_ok=True)
    servers = []
    try:
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        call("ip", "link", "set", BRIDGE, "up")
        for host, address in HOSTS.items():
            wire = host.replace("distill", "dv")
            call("ip", "netns", "add", host)
            call("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", host)
            call("ip", "link", "set", wire, "master", BRIDGE, "up")
            for words in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up"),
                          ("addr", "add", f"{address}/24", "dev", "eth0")):  # fmt: skip
                call("ip", "-n", host, *words)
            own = Path("/etc/netns") / host  # becomes /etc/hosts inside
            own.mkdir(parents=True)
            (own / "hosts").write_text(names)
            servers.append(serve(folder, host, address, key))
        time.sleep(1.0)
        for path in (folder / "env", folder / "ssh_config"):
            path.unlink(missing_ok=True)
        (folder / "env").write_text(
            "OMP_NUM_THREADS=1\nHF_HUB_OFFLINE=1\nDS_ACCELERATOR=cpu\nGLOO_SOCKET_IFNAME=eth0\n"
        )
        ssh = folder / "bin" / "ssh"  # what DeepSpeed and pdsh call, with our key and nobody's known hosts
        ssh.parent.mkdir()
        ssh.write_text(
            f"#!/bin/sh\nexec {shutil.which('ssh')} -i {key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no "
            f'-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"\n'
        )
        ssh.chmod(0o755)
        yield {
            **os.environ,
            **dict(line.split("=") for line in (folder / "env").read_text().split()),
            "DS_ENV_FILE": str(folder / "env"),
            "PATH": f"{ssh.parent}:{os.environ['PATH']}",
        }
    finally:
        for server in servers:
            server.terminate()
            server.wait()
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)
        subprocess.run(["ip", "link", "del", BRIDGE], stderr=subprocess.DEVNULL)


def serve(folder: Path, host: str, address: str, key: Path) -> subprocess.Popen:
    """An ssh server inside a namespace, which lets in whoever holds `key`."""
    own = folder / host
    own.mkdir()
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / "host_key"))
    (own / "sshd_config").write_text(
        f"ListenAddress {address}\nHostKey {own}/host_key\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin prohibit-password\nPidFile {own}/pid\n"
    )
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    inside = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
    return subprocess.Popen(["ip", "netns", "exec", host, *inside, str(sshd), "-D", "-f", str(own / "sshd_config")])


def call(*command: str) -> None:
    """Runs one command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
