"""Releases prove what they say: all that can be is derived again, and each kind of forgery is found and named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import World, python
from labelling import write_labels
from safetensors.torch import load_file, save_file

import tools.verify
from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels
from distill.errors import ArtefactError
from distill.licence import stated_licence
from distill.manifest import NAME, Manifest, seal, sealed_file
from distill.records import json_sha256, write_json
from distill.release.card import eval_results, model_card
from distill.release.release import load
from distill.retrieval.stored import bytes_per_video
from distill.verification.card import numbers
from distill.verification.claims import Claim
from distill.verification.verify import UNCHECKABLE, verify

ARTEFACTS = Path(__file__).parent / "artefacts" / "5368ee6"


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student's run, and of the label set that taught it."""
    folder = tmp_path_factory.mktemp("made")
    write_labels(world, "xclip", folder / "labels")
    recipe = world.recipe("student", "teachclip", folder, labels=[str(folder / "labels")])
    python("distill/run.py", recipe)
    return folder


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Path:
    """A copy of its release alone, to forge."""
    return shutil.copytree(made / "student" / "release", tmp_path / "copy")


def differing(claims: list[Claim]) -> set[str]:
    return {claim.name for claim in claims if claim.verdict == "differs"}


def reseal(folder: Path) -> None:
    """Make the manifest agree with changed files, as a forger would."""
    manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    config = manifest.config | {"provenance_sha256": json_sha256(json.loads((folder / "provenance.json").read_bytes()))}
    files = {name: sealed_file(folder / name, file.rows) for name, file in manifest.files.items()}
    seal(folder, manifest.model_copy(update={"files": files, "config": config}))


def forge(folder: Path, **changes: object) -> dict:
    """Write another provenance everywhere that it stands, and all that follows from it; then seal."""
    provenance = json.loads((folder / "provenance.json").read_bytes()) | changes
    write_json(folder / "provenance.json", provenance)
    config = json.loads((folder / "config.json").read_bytes())
    write_json(folder / "config.json", config | {"provenance_sha256": json_sha256(provenance)})
    model, size = load_file(folder / "model.safetensors"), sum
    parameters = size(tensor.numel() for tensor in model.values())
    stored = tuple(provenance["bytes_per_video"])
    (folder / "README.md").write_text(model_card("teachclip", provenance, stored, parameters=parameters))
    (folder / ".eval_results" / "retrieval.yaml").write_bytes(eval_results(provenance))
    reseal(folder)
    return provenance


def test_a_sound_release_holds_and_all_that_can_be_is_checked(made: Path, world: World):
    claims = verify(made / "student" / "release")  # frames and labels lie where the recipe has them
    assert not differing(claims)
    unchecked = {claim.name for claim in claims if claim.verdict == "not checked"}
    assert unchecked <= UNCHECKABLE.keys()
    held = {claim.name for claim in claims if claim.verdict == "holds"}
    provenance = json.loads((made / "student" / "release" / "provenance.json").read_bytes())
    expected = {
        f"{key}: {way} {metric}"
        for key in ("test", "validation")
        for way in ("t2v", "v2t")
        for metric in ("R@1", "MnR")
    }
    expected |= {"test: second look: t2v R@1", "test.json: t2v R@1", "test_ranks.safetensors: second_v2t"}
    expected |= {f"sha256 of {name}" for name in ("README.md", "model.safetensors", ".eval_results/retrieval.yaml")}
    expected |= {f"frames, {role}: id" for role in ("train", "val", "test")}
    expected |= {"labels labels: id", "labels labels: its teacher", "labels labels: sha256 of the teacher's weights"}
    expected |= {"cost.steps", "bytes a video: vector, tokens", "sha256 of the recipe", "card: numbers"}
    expected |= {"second look, as validation chooses it", ".eval_results: numbers"}
    assert expected <= held
    assert provenance["cost"]["steps"] * 8 == provenance["cost"]["samples"]
    assert provenance["cost"]["flops"] % provenance["cost"]["steps"] == 0 < provenance["cost"]["flops"]
    assert provenance["teachers"][0]["labels_id"] == StoredLabels(made / "labels").manifest.id
    assert provenance["frame_sets"]["test"]["id"] == FrameSet(world.frames["test"]).manifest.id
    assert {"gpu", "cpu", "cores", "processes"} == provenance["hardware"].keys()
    assert provenance["query"]["encode_ms"] > 0 and provenance["query"]["videos"] == len(FrameSet(world.frames["test"]))
    assert provenance["command"].startswith("run.py ") and provenance["recipe_sha256"] == json_sha256(
        provenance["recipe"]
    )


def test_a_changed_number_of_the_card_is_named(release: Path):
    card = (release / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| text to video |"))
    first = row.split("|")[2].strip()
    (release / "README.md").write_text(card.replace(row, row.replace(f" {first} ", " 99.9 ", 1), 1))
    number = "card: Measured, text to video, R@1"
    assert differing(verify(release)) == {"sha256 of README.md", number}
    reseal(release)
    assert differing(verify(release)) == {number}
    sizes = card.replace("128 bytes", "64 bytes")
    assert sizes != card
    (release / "README.md").write_text(sizes)
    reseal(release)
    assert {name.rpartition(" ")[0] for name in differing(verify(release))} == {"card: How to use it, sentence"}
    metadata = card.replace("value: ", "value: 9", 1)
    (release / "README.md").write_text(metadata)
    reseal(release)
    assert all(name.startswith("card: model-index, t2v R@1") for name in differing(verify(release))), "one number"


def test_a_licence_may_be_added_to_the_card_and_nothing_else(release: Path):
    card = (release / "README.md").read_text()
    stated = card.replace("---\n", "---\nlicense: cc-by-4.0\n", 1)
    (release / "README.md").write_text(stated)
    assert not differing(verify(release)) and stated_licence(release) == "cc-by-4.0"
    (release / "README.md").write_text(stated + "\nBetter than any other.\n")
    assert differing(verify(release)) == {"sha256 of README.md"}
    assert load(release).searchable, "nothing is computed of the card"


def test_changed_weights_are_named_by_their_hash_and_sealed_again_by_what_they_give(release: Path):
    weights = load_file(release / "model.safetensors")
    torch.manual_seed(1)
    name = next(name for name, value in weights.items() if value.ndim == 2 and "proj" in name)
    save_file(weights | {name: torch.randn_like(weights[name])}, release / "model.safetensors")
    assert "sha256 of model.safetensors" in differing(verify(release))
    reseal(release)
    found = differing(verify(release))
    assert not any(one.startswith("sha256") for one in found)
    assert any(one.startswith(("test: t2v", "test: v2t")) for one in found), found
    assert any(one.startswith(("validation: t2v", "validation: v2t")) for one in found), found


def test_another_frame_set_and_another_label_set_are_named(release: Path, made: Path, world: World):
    claims = verify(release, [ARTEFACTS / "frames"], [ARTEFACTS / "labels"])
    assert differing(claims) == {f"frames given, {ARTEFACTS / 'frames'}", f"labels given, {ARTEFACTS / 'labels'}"}
    why = {claim.name: claim.why for claim in claims if claim.verdict == "not checked"}
    assert "--frames" in why["frames, test: id"] and why["test: metrics"] == "its frames are not here"
    assert "--labels" in why["labels labels: id"]
    assert not differing(verify(release, list(world.frames.values()), [made / "labels"]))


def test_numbers_that_are_forged_everywhere_and_sealed_again_are_found_by_measuring(release: Path):
    provenance = json.loads((release / "provenance.json").read_bytes())
    better = {name: {**summary} for name, summary in provenance["test"].items()}
    better["t2v"]["R@1"] = 100.0 if better["t2v"]["R@1"] < 60 else 1.0
    forge(release, test=better)
    found = differing(verify(release))
    assert "test: t2v R@1" in found
    assert "card: Measured, text to video, R@1" in found and ".eval_results: t2v_recall_at_1" in found
    assert not any(one.startswith("sha256") for one in found)


def test_a_forged_teacher_cost_or_size_is_found(release: Path):
    provenance = json.loads((release / "provenance.json").read_bytes())
    teachers = [provenance["teachers"][0] | {"weights_sha256": "f" * 64}]
    cost, size = provenance["cost"] | {"samples": 10**9}, [1, 0]
    forge(release, teachers=teachers, cost=cost, bytes_per_video=size)
    found = differing(verify(release))
    assert {"labels labels: sha256 of the teacher's weights", "cost.samples", "bytes a video: vector, tokens"} <= found


@pytest.mark.parametrize(
    ("key", "value"),
    [("frame_sets", {"test": 3}), ("recipe", []), ("test", {"t2v": {"R@1": "high"}}), ("teachers", [1]), ("cost", {})],
)
def test_a_provenance_of_another_kind_is_refused_in_one_line(release: Path, key: str, value: object):
    provenance = json.loads((release / "provenance.json").read_bytes()) | {key: value}
    write_json(release / "provenance.json", provenance)
    with pytest.raises(ArtefactError, match=rf"provenance.json: damaged at {key}") as error:
        verify(release)
    assert "\n" not in str(error.value)


def test_hostile_metadata_is_a_finding_and_no_crash(release: Path):
    bomb = "a: &a [1,1,1,1,1,1,1,1]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(9))
    for metadata in ("model-index: 7", "model-index: [{results: [3]}]", bomb, "model-index: {a: b}"):
        card = (release / "README.md").read_text()
        (release / "README.md").write_text(f"---\n{metadata}\n---\n{card.split('---', 2)[2]}")
        (release / ".eval_results" / "retrieval.yaml").write_text("[3, {dataset: 4}, ]")
        reseal(release)
        found = differing(verify(release))
        assert any("model-index" in name for name in found) and any(".eval_results" in name for name in found)
    (release / "README.md").write_text("---\n[: :\n---\n")
    reseal(release)
    with pytest.raises(ArtefactError, match="its metadata cannot be read"):
        verify(release)


@pytest.mark.parametrize("kind", ["teachclip", "eercf", "xclip"])
def test_releases_of_an_earlier_version_are_verified_as_far_as_they_go(kind: str):
    claims = verify(ARTEFACTS / kind, [ARTEFACTS / "frames"])
    assert not differing(claims)
    assert {"sha256 of model.safetensors", "parameters", "frames, train: id"} <= {
        claim.name for claim in claims if claim.verdict == "holds"
    }


def test_the_command_prints_every_claim_and_ends_with_their_names(release: Path, capsys: pytest.CaptureFixture):
    tools.verify.main([str(release)])
    assert "sha256 of model.safetensors" in capsys.readouterr().out
    (release / "config.json").write_bytes((release / "config.json").read_bytes() + b" ")
    with pytest.raises(ArtefactError, match=r"1 of \d+ claims differ: sha256 of config\.json; do not rely on it"):
        tools.verify.main([str(release), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in rows} >= {"holds", "differs", "not checked"}


def test_numbers_of_a_card_are_known_by_their_place():
    card = "---\na: 1\n---\n# x\n\n## Measured\n\nOn 3 sets.\n\n| | R@1 | R@5 |\n|---|---|---|\n| t2v | 40.0 | 50 |\n\n"
    card += "## B\n\n| | |\n|---|---|\n| frames | `ab` |\n```\npython 3\n```\nIt takes 2,000 bytes and 1.5e+07.\n"
    assert numbers(card) == {
        "Measured, sentence 1": "3",
        "Measured, t2v, R@1": "40.0",
        "Measured, t2v, R@5": "50",
        "B, frames": "`ab`",
        "B, sentence 1": "2,000 1.5e+07",
    }


def test_what_the_hub_reads_are_the_metrics_that_were_measured(release: Path):
    provenance = json.loads((release / "provenance.json").read_bytes())
    entries = yaml.safe_load((release / ".eval_results" / "retrieval.yaml").read_bytes())
    found = {one["dataset"]["task_id"]: one["value"] for one in entries}
    assert found["t2v_recall_at_1"] == round(provenance["test"]["t2v"]["R@1"], 4) and len(found) == 10
    assert all("no dataset of the Hub" in one["notes"] for one in entries)
    on_the_hub = provenance | {"evaluated_on": "hf:datasets/me/frames@v1"}
    first = yaml.safe_load(eval_results(on_the_hub))[0]["dataset"]
    assert (first["id"], first["revision"]) == ("me/frames", "v1")
    loaded = load(release)
    size = bytes_per_video(loaded.model, loaded.num_frames, loaded.size)
    assert provenance["bytes_per_video"] == list(size)
