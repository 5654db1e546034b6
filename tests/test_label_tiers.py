"""A label set stores what its teacher says: shortlists, halved precision, other frames of the same videos."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, quick
from hypothesis import given
from hypothesis import strategies as st
from labelling import change_videos, label_job, pack_shards, write_labels

from distill import catalogue
from distill.data.datasets import PairDataset
from distill.data.frames import FrameSet
from distill.data.labels import Coarse, Storage, rebuilt_logits
from distill.data.labelset import LabelSet, interpolated
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError
from distill.labelling.shortlist import BEST, LIST, SCORES, TAIL, Shortlist
from distill.losses.coarse import coarse
from distill.model.contract import teacher_logits

ALL = ("relevance", "topk", "features")
TOP = 6


@pytest.fixture(scope="module")
def shards(world: World, tmp_path_factory) -> Path:
    """The training frames in shards of five."""
    return pack_shards(world, tmp_path_factory.mktemp("shards") / "frames", 5)


@pytest.fixture(scope="module")
def label_sets(world: World, shards: Path, tmp_path_factory) -> dict[tuple[str, int], Path]:
    """All tiers in fp32, by teacher and K; 1000 is more than there are videos."""
    out = tmp_path_factory.mktemp("labels")
    wanted = [("xclip", TOP), ("xclip", 1000), ("xpool", TOP), ("ts2net", TOP)]
    return {
        (kind, top): write_labels(world, kind, out / f"{kind}{top}", frames=shards, tiers=ALL, top=top)
        for kind, top in wanted
    }


def pairs_of(frames: FrameSet) -> list[tuple[int, int]]:
    return [(video, number) for video in range(len(frames)) for number in range(len(frames.videos[video].captions))]


def logits_of(path: Path, frames: FrameSet, pairs: list[tuple[int, int]], tier: Coarse) -> torch.Tensor:
    """Text x video logits of a batch as training rebuilds them."""
    labels = LabelSet(path, frames, coarse=tier)
    batch = PairDataset(frames, [labels], Tokenizer(24), pixels=False).__getitems__(pairs)
    head = catalogue.scoring_head(labels)
    return teacher_logits(head, batch.labels[0])


def one_caption_each(frames: FrameSet, seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(int(v), int(rng.integers(len(frames.videos[v].captions)))) for v in rng.permutation(len(frames))]


class TestTopk:
    """The tier `topk` against the teacher's logits of all captions and all videos."""

    def full(self, path: Path, shards: Path) -> tuple[FrameSet, list[tuple[int, int]], np.ndarray]:
        """Logits of every caption against every video, from the tier `features`."""
        frames = FrameSet(shards)
        pairs, videos = pairs_of(frames), [(video, 0) for video in range(len(frames))]
        together = logits_of(path, frames, [*pairs, *videos], "features").double().numpy()
        return frames, pairs, together[: len(pairs), len(pairs) :]

    @pytest.mark.parametrize("kind", ["xclip", "xpool", "ts2net"])
    def test_lists_are_the_best_videos_and_mass_is_kept(self, shards: Path, label_sets, kind: str):
        frames, pairs, logits = self.full(label_sets[kind, TOP], shards)
        rows = LabelSet(label_sets[kind, TOP], frames, coarse="topk").batch(pairs)
        assert rows[LIST].dtype == torch.int32 and rows[LIST].shape == (len(pairs), 1 + TOP)
        for row, (video, _) in enumerate(pairs):
            listed = rows[LIST][row].tolist()
            assert listed[0] == video and len(set(listed)) == 1 + TOP
            scores = (rows[BEST][row] + rows[SCORES][row]).double().numpy()
            np.testing.assert_allclose(scores, logits[row, listed], atol=1e-4)
            others = np.setdiff1d(np.arange(len(frames)), listed)
            assert logits[row, others].max() <= scores[1:].min() + 1e-4
            tail = (rows[BEST][row] + rows[TAIL][row]).item()
            assert tail == pytest.approx(np.log(np.mean(np.exp(logits[row, others]))), abs=1e-4)
            rebuilt = np.full(len(frames), tail)
            rebuilt[listed] = scores
            assert np.exp(rebuilt).sum() == pytest.approx(np.exp(logits[row]).sum(), rel=1e-4)  # softmax normaliser

    def test_with_all_videos_listed_the_loss_is_that_of_features(self, shards: Path, label_sets):
        frames = FrameSet(shards)
        pairs = one_caption_each(frames, 0)
        exact, sparse = (logits_of(label_sets["xclip", 1000], frames, pairs, tier) for tier in ("features", "topk"))
        assert (exact - sparse).abs().max() <= 1e-4
        student = 3 * torch.randn(len(pairs), len(pairs), generator=torch.Generator().manual_seed(1))
        assert coarse(student, sparse).item() == pytest.approx(coarse(student, exact).item(), rel=1e-5)

    def test_a_batch_has_scores_of_listed_videos_and_tails_elsewhere(self, shards: Path, label_sets):
        frames, pairs, logits = self.full(label_sets["xclip", TOP], shards)
        batch = one_caption_each(frames, 3)[:9]
        rows = LabelSet(label_sets["xclip", TOP], frames, coarse="topk").batch(batch)
        found = logits_of(label_sets["xclip", TOP], frames, batch, "topk")
        for row, pair in enumerate(batch):
            for column, (video, _) in enumerate(batch):
                listed = video in rows[LIST][row].tolist()
                expected = logits[pairs.index(pair), video] if listed else (rows[BEST] + rows[TAIL])[row].item()
                assert found[row, column].item() == pytest.approx(expected, abs=1e-4)
        assert (
            found.argmax(1).tolist()
            == logits_of(label_sets["xclip", TOP], frames, batch, "features").argmax(1).tolist()
            or (rows[LIST][:, 1:] >= 0).all()
        )

    @pytest.mark.parametrize(("storage", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8)])
    def test_halved_scores_are_off_in_proportion_to_their_distance_from_the_best(
        self, world: World, shards: Path, label_sets, tmp_path: Path, storage: Storage, bound: float
    ):
        frames = FrameSet(shards)
        half = write_labels(world, "xclip", tmp_path / storage, storage, frames=shards, tiers=("topk",), top=TOP)
        rows = [
            LabelSet(path, frames, coarse="topk").batch(pairs_of(frames)) for path in (label_sets["xclip", TOP], half)
        ]
        assert torch.equal(rows[0][LIST], rows[1][LIST])
        off = (rows[0][SCORES] - rows[1][SCORES]).abs()
        assert (off <= bound * rows[0][SCORES].abs() + 1e-7).all() and off.max() > 0
        for exact in (BEST, TAIL, "relevance"):
            assert torch.equal(rows[0][exact], rows[1][exact])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_shortlists_do_not_depend_on_the_blocks(top: int, block: int, seed: int):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, (5, 11)).astype(np.float32)  # many ties
    matched, top = rng.integers(0, 11, 5), min(top, 10)
    shortlist = Shortlist(torch.from_numpy(matched), top)
    for start in range(0, 11, block):
        part = torch.from_numpy(logits[:, start : start + block])
        shortlist.add(torch.arange(start, start + part.shape[1]), part)
    rows = shortlist.rows()
    for row in range(5):
        others = sorted((v for v in range(11) if v != matched[row]), key=lambda v: (-logits[row, v], v))
        assert rows[LIST][row].tolist() == [matched[row], *others[:top]]
        best = logits[row].max()
        assert rows[BEST][row] == best
        np.testing.assert_array_equal(rows[SCORES][row] + best, logits[row, rows[LIST][row]])
        rest = logits[row, others[top:]].astype(np.float64)
        tail = np.log(np.exp(rest).mean()) - best if len(rest) else -np.inf
        np.testing.assert_allclose(rows[TAIL][row], tail, rtol=1e-6, atol=1e-6)
    columns = rows[LIST][:, 0].long()
    if top == 10:
        torch.testing.assert_close(
            rebuilt_logits(rows, columns), torch.from_numpy(logits)[:, columns], rtol=0, atol=1e-6
        )


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ArtefactError, match="not finite"):
        Shortlist(torch.tensor([0]), 1).add(torch.arange(2), torch.tensor([[0.0, torch.nan]]))


@pytest.mark.parametrize("kind", quick(["xclip", "ts2net", "xpool"], ["xclip"]))
@pytest.mark.parametrize(("storage", "bound"), [("float16", 3e-3), ("bfloat16", 3e-2)])
def test_halved_features_are_off_by_so_much(
    world: World, shards: Path, label_sets, tmp_path: Path, kind: str, storage: Storage, bound: float
):
    """docs/labels.md states these bounds: of logits over the largest, of the loss over itself; relevance is exact."""
    frames = FrameSet(shards)
    pairs = one_caption_each(frames, 1)
    half = write_labels(world, kind, tmp_path / storage, storage, frames=shards)
    exact, found = (logits_of(path, frames, pairs, "features") for path in (label_sets[kind, TOP], half))
    assert 0 < (found - exact).abs().max() <= bound * exact.abs().max()
    student = 3 * torch.randn(len(pairs), len(pairs), generator=torch.Generator().manual_seed(1))
    assert coarse(student, found).item() == pytest.approx(coarse(student, exact).item(), rel=bound)
    relevance = [
        LabelSet(path, frames, coarse=None).batch(pairs)["relevance"] for path in (label_sets[kind, TOP], half)
    ]
    assert torch.equal(*relevance)


def test_only_the_wanted_tier_is_read_and_a_lacking_one_refused(shards: Path, label_sets, world: World, tmp_path: Path):
    frames = FrameSet(shards)
    names = {
        tier: LabelSet(label_sets["xclip", TOP], frames, coarse=tier).batch([(0, 0)]).keys()
        for tier in ("features", "topk", None)
    }
    assert names[None] == {"relevance"} and names["topk"] == {"relevance", LIST, SCORES, BEST, TAIL}
    assert names["features"] == {"relevance", "sentence", "words", "frames", "vector"}
    thin = LabelSet(write_labels(world, "xclip", tmp_path / "thin", frames=shards, tiers=("relevance",)), frames)
    with pytest.raises(ArtefactError, match=r"holds tiers relevance, but x needs 'topk'; .* --tiers relevance topk"):
        thin.require("topk", "x")


def test_a_teacher_that_says_no_number_is_refused(world: World, shards: Path, tmp_path: Path):
    job = label_job(world, "ts2net", tmp_path / "labels", frames=shards)
    with torch.no_grad():
        job.labeller.model.clip.visual.ln_post.weight.fill_(torch.nan)
    assert job.begin() is None
    with pytest.raises(ArtefactError, match=r"labels of video \S+ are not finite"):
        job.label()


@pytest.fixture(scope="module")
def few(world: World, tmp_path_factory) -> FrameSet:
    """Five frames of the same videos, with the same captions."""
    return FrameSet(pack_shards(world, tmp_path_factory.mktemp("few") / "frames", 8, num_frames=5))


class TestOtherFrames:
    """Labels are keyed by time: other frames of the same videos get them interpolated, or none."""

    def test_they_are_refused_by_default(self, few: FrameSet, label_sets):
        with pytest.raises(ArtefactError, match=r"labels were made from frames .* on_mismatch: interpolate"):
            LabelSet(label_sets["xclip", TOP], few)

    def test_relevance_is_interpolated_in_time(self, few: FrameSet, shards: Path, label_sets, caplog):
        many = FrameSet(shards)
        direct = LabelSet(label_sets["xclip", TOP], many)
        with caplog.at_level(logging.INFO):
            found = LabelSet(label_sets["xclip", TOP], few, on_mismatch="interpolate")
        numbers = {video.id: number for number, video in enumerate(many.videos)}
        gaps = {}
        for video, about in enumerate(few.videos):
            number = numbers[about.id]
            labelled, wanted = np.array(many.videos[number].timestamps), np.array(about.timestamps)
            gaps[about.id] = max(min(abs(labelled - seconds)) for seconds in wanted)
            for caption in range(len(about.captions)):
                said = direct.relevance(number, caption).numpy()
                expected = np.interp(wanted, labelled, said[: len(labelled)])
                row = found.relevance(video, caption)
                assert row.shape == (5,)
                np.testing.assert_allclose(row[: len(wanted)], expected, rtol=1e-6)
                np.testing.assert_allclose(row[len(wanted) :], said.min())
                torch.testing.assert_close(found.batch([(video, caption)])["relevance"][0], row)
        said = re.search(r"nearest labelled one is ([\d.]+) s(?: \(video (\S+)\))?", caplog.text)
        assert said and float(said[1]) == pytest.approx(max(gaps.values()), abs=1e-3)
        assert not said[2] or gaps[said[2]] == max(gaps.values())

    @pytest.mark.parametrize("tier", ["features", "topk"])
    def test_coarse_labels_pass_as_they_are(self, few: FrameSet, shards: Path, label_sets, tier: Coarse):
        many = FrameSet(shards)
        number = {video.id: place for place, video in enumerate(many.videos)}
        pairs = [(video, 1) for video in range(0, len(few), 3)]
        same = [(number[few.videos[video].id], caption) for video, caption in pairs]
        direct = LabelSet(label_sets["xclip", TOP], many, coarse=tier).batch(same)
        found = LabelSet(label_sets["xclip", TOP], few, coarse=tier, on_mismatch="interpolate").batch(pairs)
        assert found.keys() == direct.keys()
        for name in found.keys() - {"relevance"}:
            assert torch.equal(found[name], direct[name]), name

    def test_frames_at_the_same_times_keep_their_labels(self, world: World, shards: Path, label_sets, tmp_path: Path):
        again = FrameSet(pack_shards(world, tmp_path / "frames", 9))  # other shards, so another set
        direct = LabelSet(label_sets["xclip", TOP], FrameSet(shards))
        found = LabelSet(label_sets["xclip", TOP], again, on_mismatch="interpolate")
        for pair in pairs_of(again)[::5]:
            assert torch.equal(found.relevance(*pair), direct.relevance(*pair))

    def test_a_missing_video_or_caption_is_named(self, world: World, few: FrameSet, label_sets):
        other = FrameSet(world.frames["val"])
        with pytest.raises(ArtefactError, match=f"no labels of video {re.escape(other.videos[0].id)}"):
            LabelSet(label_sets["xclip", TOP], other, on_mismatch="interpolate")
        changed = FrameSet(few.path)
        caption = replace(changed.videos[3].captions[1], text="something else")
        change_videos(changed, {3: replace(changed.videos[3], captions=(changed.videos[3].captions[0], caption))})
        with pytest.raises(ArtefactError, match=f"no labels of caption {re.escape(caption.id)} of video"):
            LabelSet(label_sets["xclip", TOP], changed, on_mismatch="interpolate")


def test_interpolation_by_hand():
    row = torch.tensor([1.0, 5.0, 3.0, -7.0])  # at 0, 2 and 1 seconds, then padding
    found = interpolated(row, (0.0, 2.0, 1.0), (-1.0, 0.5, 1.25, 9.0), 6)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.5, 5.0, -7.0, -7.0]))
