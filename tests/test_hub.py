"""Sealed folders on the Hub: pushed, never over other content; fetched, and refused where a byte was turned on the way.

The Hub is a local server (tests/hub.py) that huggingface_hub itself asks.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import command, one_line_error
from hub import READ, WRITE, Hub, running, settings
from huggingface_hub import constants

import distill.release
from distill import hub as names
from distill import remote
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import NAME, Manifest, seal, sealed_file
from distill.publishing import publish
from distill.release.pushing import push
from distill.retrieval import Gallery, generation

ARTEFACTS = Path(__file__).parent / "artefacts" / "5368ee6"
RELEASE = ARTEFACTS / "teachclip"
REPO = "me/student"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process asks, with a token that may write, and no waits between tries."""
    with running() as served:
        for name, value in {
            "ENDPOINT": served.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", served.url)
        monkeypatch.setenv("HF_TOKEN", WRITE)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(remote, "WAITS", (0.01, 0.02))
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield served
        huggingface_hub.close_session()


def test_what_was_pushed_is_loaded_by_revision_and_is_the_same(hub: Hub):
    pushed = push(RELEASE, REPO)
    assert pushed.page == f"{hub.url}/{REPO}/discussions/1"
    repo = hub.repos["model", REPO]
    assert repo.private and set(repo.commits[repo.refs["main"]]) == {".gitattributes"}, "main waits for the merge"
    expected = distill.release.load(RELEASE)
    for revision in (pushed.name.partition("@")[2], "refs/pr/1"):
        loaded = distill.release.load(f"hf:{REPO}@{revision}")
        assert loaded.manifest.id == expected.manifest.id
        assert torch.equal(loaded.embed_text(["a red square"]), expected.embed_text(["a red square"]))
    asked = hub.seen.copy()
    distill.release.load(pushed.name)  # of a commit: nothing can have changed
    assert hub.seen == asked


def test_without_a_network_what_was_fetched_opens(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    push(RELEASE, REPO, direct=True)
    distill.release.load(f"hf:{REPO}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert distill.release.load(f"hf:{REPO}").manifest.id == distill.release.load(RELEASE).manifest.id
    with pytest.raises(ExpectedError, match="its cache here does not hold it; unset HF_HUB_OFFLINE") as error:
        distill.release.load("hf:me/other")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_byte_that_was_turned_on_the_way_is_fetched_again_or_refused(hub: Hub, tmp_path: Path, name: str):
    push(RELEASE, REPO, direct=True)
    hub.flip[name] = 1000
    with pytest.raises(ArtefactError, match=rf"{name}: not fetched in 3 tries .*sha256 .* the manifest says") as error:
        distill.release.load(f"hf:{REPO}")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "hub").rglob(name)), "a damaged file is not left in the cache"
    hub.flip[name] = 1
    assert distill.release.load(f"hf:{REPO}").manifest.id == distill.release.load(RELEASE).manifest.id


def test_a_repository_that_was_changed_after_sealing_is_refused_before_its_weights_come(hub: Hub):
    files = {path.name: path.read_bytes() for path in RELEASE.iterdir()}
    hub.make("model", REPO, files | {"model.safetensors": bytes(1 << 20)})
    with pytest.raises(ArtefactError, match=r"model.safetensors: 1048576 bytes, the manifest says 24624"):
        distill.release.load(f"hf:{REPO}")
    assert not any("cdn" in line or line.startswith("GET model") for line in hub.seen)
    hub.make("model", "me/half", {name: body for name, body in files.items() if name != "config.json"})
    with pytest.raises(ArtefactError, match=r"config.json: missing, though the manifest lists it"):
        distill.release.load("hf:me/half")
    hub.make("model", "me/none", {})
    with pytest.raises(ArtefactError, match=r"manifest.json: missing, no sealed folder of this project is there"):
        distill.release.load("hf:me/none")


def test_the_graphs_of_an_export_go_with_their_release(hub: Hub, tmp_path: Path):
    release = tmp_path / "release"
    shutil.copytree(RELEASE, release)
    manifest = distill.release.load(release).manifest
    figures = {"r1": 50.0, "bytes": 5, "text_ms": 1.0, "video_ms": 9.0}
    measured = {"frames": "test", "frames_id": "a" * 64, "texts": 20, "videos": 20, "torch": figures}
    measured["float32"] = {**figures, "score": 1e-6, "top10": 100.0}
    publish(release / "onnx" / "text.onnx", b"graph")
    files = {"text.onnx": sealed_file(release / "onnx" / "text.onnx")}
    config, parents = {"opset": 20, "measured": measured}, {"release": manifest.id}
    seal(
        release / "onnx",
        Manifest(kind="onnx", version=1, config=config, counts={}, parents=parents, files=files),
    )
    pushed = push(release, REPO, direct=True)
    repo = hub.repos["model", REPO]
    sent = repo.commits[repo.refs["main"]]
    assert sent["onnx/text.onnx"] == b"graph" and sent["onnx/manifest.json"] == (release / "onnx" / NAME).read_bytes()
    assert push(release, REPO).files == 0
    assert distill.release.load(pushed.name).manifest.id == manifest.id, "the weights come without the graphs"
    (release / "onnx" / "text.onnx").unlink()
    assert distill.release.load(release).manifest.id == manifest.id, "and do without them"
    with pytest.raises(ArtefactError, match=r"text\.onnx: missing, though the manifest lists it"):
        push(release, REPO)
    (release / "onnx" / "text.onnx").write_bytes(b"graqh")
    with pytest.raises(ArtefactError, match=r"text\.onnx: .*changed after sealing"):
        push(release, REPO)


def test_nothing_is_written_over_and_what_is_there_already_is_left(hub: Hub):
    push(RELEASE, REPO, direct=True)
    before = hub.repos["model", REPO].refs["main"]
    assert push(RELEASE, REPO).files == 0
    with pytest.raises(ArtefactError, match=r"already holds another .* nothing is written over it"):
        push(ARTEFACTS / "eercf", REPO, direct=True)
    hub.make("model", "me/card", {"README.md": b"mine"})
    with pytest.raises(ArtefactError, match=r"already holds another README\.md"):
        push(RELEASE, "me/card")
    assert hub.repos["model", REPO].refs == {"main": before}
    assert hub.repos["model", "me/card"].refs.keys() == {"main"}


def test_a_release_that_is_not_whole_is_not_pushed(hub: Hub, tmp_path: Path):
    shutil.copytree(RELEASE, tmp_path / "release")
    body = bytearray((tmp_path / "release" / "model.safetensors").read_bytes())
    body[-1] ^= 1
    (tmp_path / "release" / "model.safetensors").write_bytes(body)
    with pytest.raises(ArtefactError, match="changed after sealing"):
        push(tmp_path / "release", REPO)
    assert not hub.seen


def test_what_the_hub_leaves_out_is_noticed(hub: Hub):
    hub.drop.add("provenance.json")
    with pytest.raises(ArtefactError, match=r"provenance.json did not arrive as sealed"):
        push(RELEASE, REPO)


REFUSALS = {
    "401": (401, {}, r"the token is missing, wrong or too old; log in"),
    "403": (403, {"X-Error-Message": "no"}, r"the token may not do this; give it write access"),
    "412": (412, {}, r"changed meanwhile; run the same command again"),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_says_what_to_do_in_one_line(hub: Hub, status: str):
    code, headers, words = REFUSALS[status]
    hub.fail["/commit/"] = (code, 1000, headers)
    with pytest.raises(ExpectedError, match=rf"hf:{REPO}: not pushed: .*{words}") as error:
        push(RELEASE, REPO)
    assert "\n" not in str(error.value)


def test_tokens_and_names_are_checked_before_anything_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    for name in ("student", "a/b/c", "me/student@main", "datasets/me/student", "hf:../x", ""):
        with pytest.raises(ExpectedError, match=r"expected (hf:OWNER/NAME|a repository to push)"):
            push(RELEASE, name)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(ExpectedError, match=r"no token to write with; log in"):
        push(RELEASE, REPO)
    assert not hub.seen
    monkeypatch.setenv("HF_TOKEN", READ)
    with pytest.raises(ExpectedError, match=r"the token may not do this"):
        push(RELEASE, REPO)


def test_what_cannot_be_found_is_said_in_one_line(hub: Hub):
    push(RELEASE, REPO, direct=True)
    hub.make("model", "them/secret", {}, private=True)
    for name, words in {
        f"hf:{REPO}@v9": "no such revision",
        "hf:me/nothing": "no such repository, or one that may not be seen",
        "hf://datasets/me/nothing": "no such repository",
    }.items():
        with pytest.raises(ExpectedError, match=words) as error:
            distill.release.load(name)
        assert "\n" not in str(error.value)
    for name in ("hf:student", "hf:@v1", "hf://buckets/me/x", "hf:me/student/../../etc"):
        with pytest.raises(ExpectedError, match="names no repository of the Hub"):
            remote.locate(name)
    with pytest.raises(ExpectedError, match=r"opened from a folder or the Hub"):
        distill.release.load("http://127.0.0.1/release")


def test_too_many_requests_are_waited_for(hub: Hub):
    push(RELEASE, REPO, direct=True)
    hub.fail["/resolve/"] = (429, 2, {"Retry-After": "0"})
    assert distill.release.load(f"hf:{REPO}").searchable


def test_frame_sets_and_label_sets_are_read_behind_hf_urls(hub: Hub, tmp_path: Path):
    for name in ("frames", "labels"):
        push(ARTEFACTS / name, f"datasets/me/{name}", direct=True)
    near = FrameSet(ARTEFACTS / "frames")
    hub.flip["00000.tar"] = 1  # comes damaged once
    far = FrameSet("hf:datasets/me/frames")
    assert far.manifest.id == near.manifest.id
    assert all((far.pixels(video) == near.pixels(video)).all() for video in range(len(near)))
    labels = LabelSet("hf://datasets/me/labels@main", far)
    assert torch.equal(
        labels.batch([(0, 0), (1, 1)])["relevance"],
        LabelSet(ARTEFACTS / "labels", near).batch([(0, 0), (1, 1)])["relevance"],
    )
    with pytest.raises(ExpectedError, match=r"not read: no such repository|not found: no such repository"):
        FrameSet("hf:datasets/me/nothing")
    with pytest.raises(ExpectedError, match=r"only read; write to a folder, and publish it with tools/push\.py"):
        seal(remote.locate("hf:datasets/me/frames"), near.manifest)


def test_a_gallery_of_the_hub_is_searched_with_its_release_there(hub: Hub):
    push(ARTEFACTS / "gallery", "datasets/me/gallery", direct=True)
    push(RELEASE, REPO, direct=True)
    found = Gallery.open(generation.local(remote.locate("hf:datasets/me/gallery")), distill.release.load(f"hf:{REPO}"))
    expected = Gallery.open(ARTEFACTS / "gallery", distill.release.load(RELEASE))
    assert [hit.video for hit in found.search(["a red square"], 3)[0]] == [
        hit.video for hit in expected.search(["a red square"], 3)[0]
    ]


def test_both_spellings_of_a_name_are_one():
    assert names.as_url("hf:me/student@v1") == names.as_url("hf://me/student@v1") == "hf://me/student@v1"
    assert names.Repository.named("hf:datasets/me/x@refs/pr/3/a/b") == names.Repository(
        "dataset", "me/x", "refs/pr/3", "a/b"
    )
    assert remote.locate("hf:me/student") == remote.RemotePath("hf://me/student")


JOURNEY = """
import sys, tools.push, distill.release
release, to = sys.argv[1:]
tools.push.main([release, to, "--direct"])
print(distill.release.load(f"hf:{to}").manifest.id)
tools.push.main([release.replace("teachclip", "eercf"), to])
"""


def test_the_command_pushes_says_where_and_writes_over_nothing(hub: Hub, tmp_path: Path):
    """In a process of its own, which reads where the Hub is from its environment."""
    code = "from distill.errors import door\ndoor(lambda: exec(" + repr(JOURNEY) + ", {}))"
    found = command(sys.executable, "-c", code, RELEASE, REPO, check=False, **settings(hub, str(tmp_path / "home")))
    page, name, same = found.stdout.splitlines()[-3:]
    assert page.startswith(f"{hub.url}/{REPO}/commit/") and name.startswith(f"hf:{REPO}@")
    assert same == Manifest.model_validate_json((RELEASE / NAME).read_bytes()).id
    one_line_error(found, "already holds another")
