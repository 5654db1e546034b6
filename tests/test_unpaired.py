"""Videos without captions and captions without videos: their order, their labels, and what the losses make of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, python
from labelling import QUERY, TRAINED, random_teacher, teacher_release, write_labels

from distill.config import read_recipe
from distill.data.cycle import Cycle
from distill.data.datasets import PairDataset, TrainingDataset, UnpairedSource
from distill.data.draw import Draw
from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels
from distill.data.labelset import LabelSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.textlabels import TextLabels
from distill.data.texts import Texts
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, RecipeError
from distill.experiment import prepare
from distill.labelling.textjob import TextJob
from distill.packing.clips import read_annotations
from distill.packing.packing import PackConfig, pack
from distill.provenance import caption_sources, provenance
from distill.recipe import Recipe
from distill.release.card import model_card
from distill.training.batches import plan_unpaired
from distill.training.lossconfig import LossConfig
from distill.training.objective import Objective

TEXTS = ["a red square\n", "\n", "something blue moves\n", "a red square\n", "nothing at all\n", "four words are here"]


@pytest.fixture(scope="module")
def material(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A frame set of a folder of videos alone, a text file, and the label sets of one teacher of all."""
    folder = tmp_path_factory.mktemp("unpaired")
    (folder / "clips" / "inside").mkdir(parents=True)
    names = sorted(path for path in (world.corpus / "videos").iterdir() if path.suffix == ".mp4")[-10:]
    for number, path in enumerate(names):
        (folder / "clips" / ("inside" if number % 2 else ".") / path.name).symlink_to(path)
    (folder / "clips" / "broken.mp4").write_bytes(b"nothing")
    said = python("tools/pack_frames.py", folder / "clips", "--size", "64", "--out", folder / "frames").stdout
    assert f"{folder / 'frames'}: 10 videos, 0 captions" in said and "skipped broken (broken.mp4)" in said
    (folder / "texts.txt").write_text("".join(TEXTS))
    write_labels(world, "xclip", folder / "labels")
    write_labels(world, "xclip", folder / "of-videos", frames=folder / "frames")
    label_texts(world, folder / "texts.txt", folder / "of-texts")
    return {name: folder / name for name in ("frames", "texts.txt", "labels", "of-videos", "of-texts")}


def label_texts(world: World, texts: Path, out: Path) -> Path:
    job = TextJob(teacher_release(world, "xclip"), Texts.open(texts), out, storage="float32", batch=3, precision="fp32")
    assert job.begin() is None and job.label() is not None
    return out


@pytest.mark.parametrize(("number", "size"), [(10, 3), (7, 7), (1000, 128)])
def test_items_come_round_once_in_a_round_and_never_twice_in_a_batch(number: int, size: int):
    cycle, each = Cycle(number, size, 5, 4), number // size
    for turn in range(4):
        drawn = np.concatenate([cycle.batch(turn * each + place) for place in range(each)])
        assert len(set(drawn.tolist())) == each * size and set(drawn.tolist()) <= set(range(number))
    seen = {item for step in range(40 * each) for item in cycle.batch(step).tolist()}
    assert seen == set(range(number)), "what one round leaves out comes in others"
    again = Cycle(number, size, 5, 4)
    for step in (17, 3, 0, 17):
        assert np.array_equal(again.batch(step), cycle.batch(step))
    if number > size:
        assert not np.array_equal(cycle.batch(0), Cycle(number, size, 5, 5).batch(0))
        assert not np.array_equal(cycle.batch(0), Cycle(number, size, 6, 4).batch(0))


def test_a_folder_alone_is_packed_under_the_ids_of_its_index(material):
    frames = FrameSet(material["frames"])
    assert all(not video.captions for video in frames.videos)
    assert sum(video.id.startswith("inside/") for video in frames.videos) == 5
    assert "annotations_sha256" not in frames.manifest.config and frames.manifest.config["layout"] == "folder"


@pytest.mark.parametrize("kind", ["xclip", "ts2net", "xpool"])
def test_labels_of_videos_without_captions_are_the_live_teachers(world: World, material, tmp_path: Path, kind: str):
    frames = FrameSet(material["frames"])
    stored = LabelSet(write_labels(world, kind, tmp_path, frames=material["frames"]), frames)
    assert all("relevance" not in stored.header(key) for key in stored.keys)
    teacher, numbers = random_teacher(world, kind), [7, 0, 3]
    found = stored.videos(numbers)
    for row, number in enumerate(numbers):
        pixels = torch.zeros(1, frames.num_frames, 3, frames.size, frames.size, dtype=torch.uint8)
        own = torch.from_numpy(frames.pixels(number))
        pixels[0, : len(own)] = own
        with torch.inference_mode():
            live = teacher.encode_video(pixels, torch.arange(frames.num_frames)[None] < len(own)).tensors()
        assert set(found) == set(teacher.interaction.video_fields) & set(live)
        for name, value in found.items():
            torch.testing.assert_close(value[row], live[name][0].float(), atol=1e-5, rtol=1e-5)


def test_labels_of_captions_without_videos_are_the_live_teachers(world: World, material):
    texts = Texts.open(material["texts.txt"])
    assert texts.captions == ["a red square", "something blue moves", "nothing at all", "four words are here"]
    teacher = random_teacher(world, "xclip")
    found = TextLabels(material["of-texts"], texts).batch([3, 1])
    with torch.inference_mode():
        live = teacher.encode_text(torch.from_numpy(Tokenizer(24)([texts.captions[3], texts.captions[1]])))
    for name, value in live.tensors().items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_captions_of_a_frame_set_serve_apart_from_its_videos(world: World, material):
    frames = FrameSet(world.frames["train"])
    texts = Texts.open(world.frames["train"])
    assert set(texts.captions) == {caption.text for video in frames.videos for caption in video.captions}
    assert len(set(texts.captions)) == len(texts.captions)
    labels, pairs = TextLabels(material["labels"], texts), LabelSet(material["labels"], frames)
    number = len(texts.captions) // 2
    video, caption = next(
        (row, place)
        for row, each in enumerate(frames.videos)
        for place, said in enumerate(each.captions)
        if said.text == texts.captions[number]
    )
    assert torch.equal(labels.batch([number])["sentence"], pairs.batch([(video, caption)])["sentence"])
    assert set(labels.batch([number])) == {"sentence", "words"}
    with pytest.raises(ArtefactError, match=r"labels were made from frames .* run tools/dump_soft_labels.py on it"):
        TextLabels(material["of-videos"], texts)
    with pytest.raises(ArtefactError, match="labels were made from texts nothing"):
        TextLabels(material["labels"], Texts.open(material["texts.txt"]))


def test_the_command_labels_verifies_and_forecasts(world: World, material, teacher: Path, tmp_path: Path):
    for source, what in (
        (material["frames"], "of 0 captions (0 distinct) and 10 videos"),
        (material["texts.txt"], "of 4"),
    ):
        out = tmp_path / source.name
        plan = python("tools/dump_soft_labels.py", teacher, source, "--out", out, "--plan", "--dtype", "float32").stdout
        said = python("tools/dump_soft_labels.py", teacher, source, "--out", out, "--dtype", "float32").stdout
        assert f"{out}: labels {what}" in said and "minutes for 1 process" in plan
        again = python("tools/labels.py", "verify", out, "--teacher", teacher, "--frames", source, "--json").stdout
        found = json.loads(again)["recomputed"]
        assert found and all(one["largest"] <= 1e-3 * one["scale"] and one["scale"] > 0 for one in found.values())
        stored = StoredLabels(out)
        numbers = sum(e.end - e.begin for key in stored.keys for e in stored.header(key).values())
        assert f"{numbers:,}" in plan, "the forecast counts the bytes that are written"
    for command, sets in (("stats", 1), ("diff", 2)):
        args = [tmp_path / "texts.txt"] * sets
        refused = python("tools/labels.py", command, *args, check=False)
        assert refused.returncode == 2 and "captions without videos" in refused.stderr
    said = python("tools/labels.py", "stats", tmp_path / "frames", "--json").stdout
    assert json.loads(said)["sets"][0]["entropy"] is None
    refused = python("tools/labels.py", "diff", tmp_path / "frames", tmp_path / "frames", check=False)
    assert refused.returncode == 2 and "no captions" in refused.stderr


def dataset(world: World, material, unpaired: bool = True) -> TrainingDataset:
    frames, tokenizer = FrameSet(world.frames["train"]), Tokenizer(24)
    pairs = PairDataset(frames, [LabelSet(material["labels"], frames)], tokenizer, pixels=True)
    if not unpaired:
        return TrainingDataset(pairs, UnpairedSource(None, None))
    videos, texts = FrameSet(material["frames"]), Texts.open(material["texts.txt"])
    video_labels, text_labels = LabelSet(material["of-videos"], videos), TextLabels(material["of-texts"], texts)
    return TrainingDataset(pairs, UnpairedSource(videos, texts, [video_labels], [text_labels]))


def objective(world: World, material, kind: str, accumulate: int = 1, **losses: dict) -> Objective:
    recipe = world.recipe(kind, kind, material["frames"].parent, **({"model": MODELS[kind]} if kind in MODELS else {}))
    job, _ = prepare(read_recipe(recipe, [], Recipe))
    head = random_teacher(world, "xclip").interaction
    return Objective(
        job.model.train(), [(head, 1.0)], LossConfig.model_validate(losses), bf16=False, accumulate=accumulate
    )


MODELS = {"teachclip": {"second": {}}, "eercf": {"frames": 12}, "glscl": {"queries": {"dropout": 0.0}}}
MODELS["pig"] = {"dropout": 0.0, "generator": {"selected": 4}}
PAIRS = [(0, 0), (3, 1), (7, 2), (12, 0)]


def kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton's loss of the rows, by hand."""

    def softmax(row: np.ndarray) -> np.ndarray:
        exp = np.exp(row - row.max())
        return exp / exp.sum()

    rows = []
    for own, other in zip(student / temperature, teacher / temperature, strict=True):
        p, q = softmax(other), softmax(own)
        rows.append(float((p * (np.log(p) - np.log(q))).sum()))
    return temperature**2 * float(np.mean(rows))


@pytest.mark.parametrize("kind", ["clip4clip", "teachclip", "eercf", "glscl", "pig"])
def test_the_coarse_loss_sees_all_texts_and_videos_and_every_other_loss_the_pairs(world: World, material, kind: str):
    coarse = {"distance": "kl", "temperature": 4.0}
    fine = {"weight": 0.0 if kind == "clip4clip" else 2.0}  # which scores no frames in training
    whole = objective(world, material, kind, coarse=coarse, fine=fine)
    with_more, alone = dataset(world, material), dataset(world, material, unpaired=False)
    draw = Draw(PAIRS, [1, 5, 8], [2, 0])
    found = whole(with_more.__getitems__(draw))
    plain = whole(alone.__getitems__(Draw(PAIRS, [], [])))
    for name, value in plain.items():
        if name not in ("coarse", "total"):
            torch.testing.assert_close(found[name], value, msg=name)
    assert found["coarse"] != plain["coarse"]

    batch = with_more.__getitems__(draw)
    assert batch.unpaired is not None and batch.frames is not None and batch.unpaired.frames is not None
    ids = torch.cat([batch.ids, batch.unpaired.ids])
    frames, real = torch.cat([batch.frames, batch.unpaired.frames]), torch.cat([batch.real, batch.unpaired.real])
    teacher = random_teacher(world, "xclip")
    with torch.no_grad():
        rankings = whole.model.rankings(whole.model.encode_text(ids), whole.model.encode_video(frames, real))
        live = teacher.logits(teacher.encode_text(ids), teacher.encode_video(frames, real)).double().numpy()
    assert live.shape == (6, 7)
    expected = [
        kl(own.double().numpy(), live, 4.0) + kl(own.double().numpy().T, live.T, 4.0) for own in rankings.values()
    ]
    assert found["coarse"].item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_without_texts_and_videos_it_is_the_plain_loss(world: World, material):
    whole = objective(world, material, "teachclip")
    more = dataset(world, material)
    empty = whole(more.__getitems__(Draw(PAIRS, [], [])))
    plain = whole(dataset(world, material, unpaired=False).__getitems__(Draw(PAIRS, [], [])))
    assert {name: value.item() for name, value in empty.items()} == {
        name: value.item() for name, value in plain.items()
    }
    videos, texts = (whole(more.__getitems__(draw))["coarse"] for draw in (Draw(PAIRS, [4], []), Draw(PAIRS, [], [1])))
    assert len({videos.item(), texts.item(), plain["coarse"].item()}) == 3


def test_micro_batches_give_the_same_loss_and_gradient(world: World, material):
    draw = Draw(PAIRS, [1, 5], [2, 0, 3])
    batch, found = dataset(world, material).__getitems__(draw), []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        whole = objective(world, material, "teachclip", accumulate=accumulate)
        parts = whole(batch)
        parts["total"].backward()
        found.append((parts, [p.grad for p in whole.model.parameters() if p.grad is not None]))
    (one, first), (other, second) = found
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    assert len(first) == len(second) > 10
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_memory_of_a_batch_is_known_before_it_is_made(world: World, material):
    more = dataset(world, material)
    draw = Draw(PAIRS, [1, 5, 8], [2, 0])
    assert more.nbytes(draw) == more.__getitems__(draw).nbytes
    assert replace(more.__getitems__(draw), unpaired=None).nbytes == more.pairs.nbytes(PAIRS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["labels=[{path: LABELS, texts: OF-TEXTS}]"], r"has no unlabelled; name this teacher's label set of .*frames"),
        (["data.texts=null"], "texts names labels, but data.texts is not set"),
        (["data.val=FRAMES"], r"10 of 10 videos have no captions \(.*\); evaluate on a frame set that was packed with"),
        (["data.train=FRAMES"], r"data.train: no video of .* has a caption; give it as data.unlabelled"),
        (["labels=[]"], "data.unlabelled: only the coarse loss learns from it"),
        (["losses.coarse.weight=0"], "data.unlabelled: only the coarse loss learns from it"),
        (["labels=[{path: LABELS, coarse: topk, unlabelled: OF-VIDEOS, texts: OF-TEXTS}]"], "coarse: topk knows no"),
        (
            ["data.unlabelled_size=11"],
            r"data.unlabelled_size: 11, but data.unlabelled holds 10; lower it to at most 10",
        ),
        (["data.texts_size=5"], r"data.texts_size: 5, but data.texts holds 4"),
        (["labels=[{path: LABELS, unlabelled: OF-TEXTS, texts: OF-TEXTS}]"], "labels were made from frames nothing"),
        (
            ["train.accumulate=2", "data.unlabelled_size=3"],
            "3 videos cannot be shared equally by 1 processes in 2 micro",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(world: World, material, tmp_path: Path, changes, reason):
    names = {"LABELS": "labels", "OF-VIDEOS": "of-videos", "OF-TEXTS": "of-texts", "FRAMES": "frames"}
    for name, key in names.items():
        changes = [change.replace(name, str(material[key])) for change in changes]
    with pytest.raises((RecipeError, ArtefactError), match=reason):
        job, _ = prepare(read_recipe(recipe(world, material, tmp_path), changes, Recipe))
        plan_unpaired(job.unpaired, job.data, job.seed)


def recipe(world: World, material, out: Path) -> Path:
    labels = {
        "path": str(material["labels"]),
        "unlabelled": str(material["of-videos"]),
        "texts": str(material["of-texts"]),
    }
    data = {"unlabelled": str(material["frames"]), "unlabelled_size": 4, "texts": str(material["texts.txt"])}
    return world.recipe("student", "teachclip", out, labels=[labels], data={**data, "texts_size": 2})


def test_labels_of_another_teacher_are_refused(world: World, material, tmp_path: Path):
    write_labels(world, "xpool", tmp_path / "other", frames=material["frames"])
    labels = f"labels=[{{path: {material['labels']}, unlabelled: {tmp_path / 'other'}, texts: {material['of-texts']}}}]"
    with pytest.raises(
        RecipeError, match=r"was made by teacher xpool, but .* by xclip; name label sets of one teacher"
    ):
        prepare(read_recipe(recipe(world, material, tmp_path), [labels], Recipe))


def test_who_wrote_a_caption_is_kept_and_counted(world: World, tmp_path: Path):
    video = next((world.corpus / "videos").glob("*.mp4")).name
    said = [("one", ""), ("two", "human"), ("three", "captioner-2b@9f1c"), ("four", "captioner-2b@9f1c")]
    rows = "".join(f"{video},{text},{source}\n" for text, source in said)
    (tmp_path / "with.csv").write_text(f"video,caption,source\n{rows}")
    (tmp_path / "without.csv").write_text("video,caption\n" + "".join(f"{video},{text}\n" for text, _ in said))
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip"), size=64)
    for name in ("with", "without"):
        pack(tmp_path / f"{name}.csv", "csv", world.corpus / "videos", tmp_path / name, config, workers=1)
    frames = FrameSet(tmp_path / "with")
    assert [caption.source for caption in frames.videos[0].captions] == [source or None for _, source in said]
    assert caption_sources(frames) == {"unknown": 1, "human": 1, "captioner-2b@9f1c": 2}
    assert caption_sources(FrameSet(tmp_path / "without")) == {"unknown": 4}
    card = model_card("teachclip", {"captions": caption_sources(frames)}, None, parameters=1)
    assert "| captions by source | unknown 1, human 1, captioner-2b@9f1c 2 |" in card
    for odd in ("a\x1bb", "x" * 101):
        (tmp_path / "odd.csv").write_text(f"video,caption,source\n{video},one,{odd}\n")
        with pytest.raises(ArtefactError, match=r"line 2: source: expected a name of at most 100 characters"):
            read_annotations(tmp_path / "odd.csv", "csv", world.corpus / "videos")


def test_every_label_set_is_a_parent_of_the_release(world: World, material, tmp_path: Path):
    other = shutil.copytree(material["labels"], tmp_path / "labels")  # another folder of the same name
    file = recipe(world, material, tmp_path)
    both = f"unlabelled: {material['of-videos']}, texts: {material['of-texts']}"
    read = read_recipe(file, [f"labels=[{{path: {material['labels']}, {both}}}, {{path: {other}, {both}}}]"], Recipe)
    job, _ = prepare(read)
    parents = provenance(read, job, TRAINED, QUERY, None, {})["parents"]
    assert set(parents) == {
        *("frames", "unlabelled", "texts", "labels labels", "labels labels, unlabelled", "labels labels, texts"),
        *("labels labels #2", "labels labels #2, unlabelled", "labels labels #2, texts"),
    }
    assert parents["unlabelled"] == FrameSet(material["frames"]).manifest.id
    assert parents["labels labels #2"] == StoredLabels(other).manifest.id
