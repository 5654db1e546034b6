"""Galleries and search: the right video first, with the right seconds, and never through the wrong release."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_release import ARCHITECTURE, FRAMES, TEMPORAL, make, release

from distill.catalogue import build, parse_model_config
from distill.data.frames import FrameSet
from distill.data.padding import pad
from distill.data.sampler import Clip4ClipSampler
from distill.data.sampling import sample_video
from distill.data.tokens import Tokenizer
from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.model import inplace
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.model.towers import Towers
from distill.packing.packing import PackConfig, pack
from distill.ranking.topk import top_k
from distill.release.release import load
from distill.retrieval import Gallery, Hit
from distill.retrieval.encoder import Encoder
from distill.retrieval.indexing import build_gallery
from distill.retrieval.moment import best_moment
from distill.retrieval.stored import bytes_per_video
from tools import index, search

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
SHOT = {"red": (0, 2), "green": (2, 5), "blue": (4, 6)}  # seconds of each six-second clip that show its colour


class ColourModel:
    """Everything that a gallery asks of a model of one stage."""

    rerank_fields = ()
    relevance, frame_cosines = RetrievalModel.relevance, RetrievalModel.frame_cosines

    def __init__(self, pool_temperature):
        self.pool_temperature = pool_temperature

    def parameters(self):
        return iter([torch.zeros(1)])

    def query_vectors(self, text):
        return unit(text.sentence)

    def index_vectors(self, video):
        return unit(video.vector)


class ColourEncoder:
    """Stands in for a release: queries name a colour, frames vote for theirs, and grey ones hardly count."""

    def __init__(self, path, pool_temperature):
        self.path, self.num_frames, self.searchable, self.model = path, 8, True, ColourModel(pool_temperature)
        self.tokenizer, self.second_look, self.fit, self.size = Tokenizer(77), None, None, 32
        self.frames_config = {"sampler": {**FRAMES["sampler"], **SAMPLER_REST, "num_frames": 8}, "size": 32}
        self.manifest = Manifest(
            kind="release", version=1, config={"t": pool_temperature}, counts={}, parents={}, files={}
        )

    def accept(self, frames):
        frames.check_settings(self.frames_config, self.path)
        return frames

    def encode_text(self, texts):
        rows = torch.stack([torch.tensor(COLOURS[text.split()[-1]], dtype=torch.float32) for text in texts])
        return TextFeatures(sentence=rows - rows.mean(-1, keepdim=True))

    def encode_frames(self, pixels, real):
        colour = pixels.float().mean((3, 4))
        colour = colour - colour.mean(-1, keepdim=True)  # video frame rgb; grey is zero
        relevance = colour.norm(dim=-1) / 100
        weights, temperature = torch.ones_like(relevance), self.model.pool_temperature
        if temperature is not None:
            weights = (relevance / temperature).exp()
        weights = weights * real
        vector = (weights.unsqueeze(-1) * colour).sum(1)
        learned = None if temperature is None else relevance
        return VideoFeatures(vector=vector, frames=colour, relevance=learned, real=real)

    def encode_video(self, video):
        (sampled,) = sample_video(video, [None], Clip4ClipSampler(kind="clip4clip", num_frames=8), 32)
        pixels, real = pad(sampled.pixels(), 8)
        return self.encode_frames(torch.from_numpy(pixels)[None], torch.from_numpy(real)[None])


SAMPLER_REST = {
    key: value for key, value in Clip4ClipSampler(kind="clip4clip").model_dump().items() if key not in FRAMES
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three clips of six seconds, grey but for one shot, and their frame sets of 8 and of 4 frames."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = ["video,caption"]
    for name, colour in COLOURS.items():
        clip = np.full((60, 48, 64, 3), 128, np.uint8)
        clip[10 * SHOT[name][0] : 10 * SHOT[name][1]] = colour
        write_video(folder / "videos" / f"{name}.mp4", clip, fps=10)
        rows += [f"{name},a square of {name}", f"{name},something {name}"]
    (folder / "all.csv").write_text("\n".join(rows) + "\n")
    for num_frames in (4, 8):
        config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=num_frames), size=32)
        pack(folder / "all.csv", "csv", folder / "videos", folder / f"frames{num_frames}", config, workers=1)
    return folder


@pytest.mark.parametrize("pool_temperature", [0.1, None])
def test_the_planted_video_is_found_with_its_seconds(pool_temperature, corpus, tmp_path):
    encoder = ColourEncoder(tmp_path / "release", pool_temperature)
    assert isinstance(encoder, Encoder)
    frames = corpus / "frames8"
    manifest = build_gallery(encoder, frames, tmp_path / "gallery", batch=2, videos=corpus / "videos")
    assert manifest.parents == {"release": encoder.manifest.id, "frames": FrameSet(frames).manifest.id}
    assert manifest.config["frame_weights"] == ("resemblance" if pool_temperature is None else "pooling")
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    answers = gallery.search([f"a square of {name}" for name in COLOURS], k=5)
    for name, hits in zip(COLOURS, answers, strict=True):
        assert len(hits) == 3, "no more hits than videos"
        assert hits[0].video == name
        assert hits[0].score > 0.99 > hits[1].score
        assert hits[0].seconds == pytest.approx(SHOT[name], abs=0.5), "a frame each second: half a second at each end"
        assert hits[0].source == str(corpus / "videos" / f"{name}.mp4")
        assert hits[0].duration == pytest.approx(6, abs=0.1)


def test_padding_weighs_nothing_and_rows_describe_their_videos(corpus, tmp_path):
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, corpus / "frames8", tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    assert len(gallery) == 3
    assert [gallery.about(row)["id"] for row in range(3)] == list(COLOURS)
    assert all(len(gallery.about(row)["timestamps"]) == 6 for row in range(3))
    weights = gallery.table.frame_weights(gallery.table.rows())
    assert weights.shape == (3, 8)
    assert (weights[:, 6:] == 0).all()
    assert np.allclose(np.linalg.norm(gallery.table.vectors(gallery.table.rows()), axis=-1), 1)
    assert Gallery.open(tmp_path / "gallery", encoder).search(["red"], 1)[0][0].source == "red.mp4"


def test_a_gallery_is_refused_to_another_release(corpus, tmp_path):
    frames = corpus / "frames4"
    for seed in (0, 1):
        release(tmp_path / f"release{seed}", *make(seed=seed))
    first, second = load(tmp_path / "release0"), load(tmp_path / "release1")
    build_gallery(first, frames, tmp_path / "gallery")
    with pytest.raises(
        ArtefactError, match=f"made by release {first.manifest.id[:12]}, but .* {second.manifest.id[:12]}"
    ):
        Gallery.open(tmp_path / "gallery", second)
    with pytest.raises(ArtefactError, match=f"made by release {first.manifest.id[:12]}"):
        build_gallery(second, frames, tmp_path / "gallery")


@pytest.mark.parametrize("kind", ["teachclip", "clip4clip"])
def test_a_release_and_its_gallery_agree(kind, corpus, tmp_path):
    release(tmp_path / "release", *make(kind))
    loaded, frames = load(tmp_path / "release"), FrameSet(corpus / "frames4")
    manifest = build_gallery(loaded, corpus / "frames4", tmp_path / "gallery")
    assert build_gallery(loaded, corpus / "frames4", tmp_path / "gallery").id == manifest.id, "made once, then kept"
    gallery = Gallery.open(tmp_path / "gallery", loaded)
    query = "a red square moves"
    video = torch.cat([loaded.encode_video(frames.pixels(number)).vector for number in range(3)])
    expected = loaded.model.similarity(loaded.encode_text([query]), VideoFeatures(vector=video))[0]
    found = {hit.video: hit.score for hit in gallery.search([query], 3)[0]}
    assert [found[gallery.about(row)["id"]] for row in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_teacher_and_frames_of_other_settings_are_refused(corpus, tmp_path):
    release(tmp_path / "teacher", *make("xclip"))
    with pytest.raises(ArtefactError, match="a teacher, which scores text and video together"):
        build_gallery(load(tmp_path / "teacher"), corpus / "frames4", tmp_path / "gallery")
    release(tmp_path / "student", *make())
    with pytest.raises(ArtefactError, match=r'"num_frames": 8.* was trained with .*"num_frames": 4'):
        build_gallery(load(tmp_path / "student"), corpus / "frames8", tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()


def test_an_unfinished_gallery_is_made_again_and_a_strange_folder_is_left_alone(corpus, tmp_path):
    encoder, frames = ColourEncoder(tmp_path / "release", 0.1), corpus / "frames8"
    whole = build_gallery(encoder, frames, tmp_path / "gallery")
    (tmp_path / "gallery" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="not finished"):
        Gallery.open(tmp_path / "gallery", encoder)
    assert build_gallery(encoder, frames, tmp_path / "gallery").id == whole.id
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"not begun by tools/index\.py"):
        build_gallery(encoder, frames, tmp_path / "photos")


CUBES = {"kind": "prompt_switch", "prompts": 2, "frames": 2, "captions": None}


def two_stage_release(folder, **model):
    """A random release that reranks."""
    on_top = {} if model["kind"] == "prompt_switch" else {"temporal": TEMPORAL}
    raw = {"clip": {"model": "tiny"}, **on_top, **model}
    config = parse_model_config(raw, "test")
    torch.manual_seed(0)
    release(folder, config, build(config, Towers.from_architecture(ARCHITECTURE)).eval())
    return load(folder)


@pytest.mark.parametrize(
    ("model", "dim", "token_bytes"),
    [
        ({"kind": "eercf", "frames": 4, "patches": False}, 64, 2 * 64 * (1 + 4 + 4) + 4),
        ({"kind": "eercf", "frames": 4}, 64, 2 * 64 * (1 + 4 + 4 + 4 * 16) + 4),
        ({"kind": "glscl"}, 8 * 64, 2 * 64 * (1 + 4 + 8) + 4),
        ({"kind": "glscl", "index_by": "coarse"}, 64, 2 * 64 * (1 + 4 + 8) + 4),
        ({**CUBES, "pooling": "attention"}, 64, 2 * 64 * (1 + 4) + 4),
        ({**CUBES, "pooling": "transformer"}, 64, 2 * 64 * (1 + 4) + 4),
    ],
)
def test_a_gallery_of_two_stages_reranks_its_candidates(model, dim, token_bytes, corpus, tmp_path, capsys):
    loaded, frames = two_stage_release(tmp_path / "release", **model), FrameSet(corpus / "frames4")
    index.main([str(tmp_path / "release"), str(corpus / "frames4"), "--out", str(tmp_path / "gallery")])
    assert f"{4 * dim:,} bytes of vectors and {token_bytes:,} of tokens a video" in capsys.readouterr().out
    assert bytes_per_video(loaded.model, 4, 32) == (4 * dim, token_bytes)
    card = (tmp_path / "release" / "README.md").read_text()
    assert f"a vector of {4 * dim:,} bytes" in card and f"{token_bytes:,} bytes of tokens (float16)" in card
    gallery = Gallery.open(tmp_path / "gallery", loaded)
    sizes = {"dim": dim, "vector_bytes": 4 * dim, "token_bytes": token_bytes}
    assert gallery.manifest.counts == {"videos": 3, "rows": 3, "generation": 1} | sizes
    assert gallery.manifest.config["tokens"] == ["vector", *loaded.model.rerank_fields]
    assert gallery.manifest.config["frame_weights"] == "resemblance"
    assert np.allclose(gallery.table.frame_weights(gallery.table.rows()).sum(1), 1)
    query = "a red square moves"
    videos = VideoFeatures.cat([loaded.encode_video(frames.pixels(number)) for number in range(3)])
    text = loaded.encode_text([query])
    with torch.inference_mode():
        full = loaded.model.similarity(text, videos)[0]
        coarse = (loaded.embed_text([query]) @ loaded.model.index_vectors(videos).T)[0]
    names = [gallery.about(row)["id"] for row in range(3)]
    for candidates, k in ((3, 3), (2, 2), (1, 2), (None, 1)):
        chosen = coarse.topk(max(candidates or 3, k)).indices
        expected = chosen[full[chosen].argsort(descending=True)][:k]
        hits = gallery.search([query], k, candidates)[0]
        assert [hit.video for hit in hits] == [names[video] for video in expected]
        assert [hit.score for hit in hits] == pytest.approx(full[expected].tolist(), abs=2e-4), "float16 tokens"
    search.main([str(tmp_path / "gallery"), query, "--k", "2", "--candidates", "2", "--json"])
    hits = json.loads(capsys.readouterr().out)
    assert [hit["video"] for hit in hits] == [hit.video for hit in gallery.search([query], 2, 2)[0]]
    with pytest.raises(ExpectedError, match="candidates: 0, expected the number of videos to rerank"):
        gallery.search([query], 1, 0)


@pytest.mark.parametrize("model", [{"kind": "glscl"}, {"kind": "eercf", "frames": 4}])
def test_a_second_stage_reads_every_segment_where_it_lies(model, corpus, tmp_path, monkeypatch):
    if not inplace.built():
        pytest.skip("no C compiler: PyTorch reads copies")
    loaded, path = two_stage_release(tmp_path / "release", **model), tmp_path / "gallery"
    (tmp_path / "list.txt").write_text(f"{corpus / 'videos' / 'green.mp4'}\n")
    build_gallery(loaded, tmp_path / "list.txt", path)
    build_gallery(loaded, corpus / "frames4", path, append=True)
    gallery, read, attend = Gallery.open(path, loaded), [], inplace._attend
    assert len(gallery.table.segments) == 2 and len(gallery) == 3
    monkeypatch.setattr(inplace, "_attend", lambda *given: read.append(len(given[1])) or attend(*given))
    hits = gallery.search(["a red square moves"], 3)[0]
    assert set(read) == {1, 2}, "rows of one segment, and of the other"
    read.clear()
    copied = gallery.search(["a red square moves"], 3, exact=True)[0]
    assert not read and [hit.video for hit in hits] == [hit.video for hit in copied]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in copied], abs=1e-5)


def test_a_killed_index_of_two_stages_ends_with_the_same_gallery(corpus, tmp_path):
    loaded = two_stage_release(tmp_path / "release", kind="glscl")
    whole = build_gallery(loaded, corpus / "frames4", tmp_path / "gallery", batch=2)
    for name in ("manifest.json", "segments/00001/vectors.safetensors"):
        (tmp_path / "gallery" / name).unlink()
    (tmp_path / "gallery" / "segments" / "00001" / ".tokens.safetensors.1.part").write_bytes(b"half")
    assert build_gallery(loaded, corpus / "frames4", tmp_path / "gallery", batch=2).id == whole.id
    assert build_gallery(loaded, corpus / "frames4", tmp_path / "gallery", batch=1).id == whole.id


def test_numbers_that_float16_cannot_hold_are_refused(corpus, tmp_path):
    loaded = two_stage_release(tmp_path / "release", kind="glscl")
    encode = loaded.encode_frames
    loaded.encode_frames = lambda pixels, real: replace(
        encode(pixels, real), frames=torch.full((len(real), 4, 64), 7e4)
    )
    with pytest.raises(ArtefactError, match="its frames in float16 of video 'red' is not finite"):
        build_gallery(loaded, corpus / "frames4", tmp_path / "gallery")


def test_one_vector_leaves_nothing_to_rerank(corpus, tmp_path):
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, corpus / "frames8", tmp_path / "gallery")
    assert "token_bytes" not in Gallery.open(tmp_path / "gallery", encoder).manifest.counts
    assert {str(path.relative_to(tmp_path / "gallery")) for path in (tmp_path / "gallery").rglob("*.*")} == {
        *(".lock", "manifest.json", "files/00001.jsonl"),
        *(f"segments/00001/{name}.safetensors" for name in ("vectors", "frames", "rows")),
        "segments/00001/videos.jsonl",
        *(f"segments/00001/{name}" for name in ("posters.bin", "posters.safetensors")),
    }
    with pytest.raises(ExpectedError, match="one vector per video and nothing to rerank; leave it out"):
        Gallery.open(tmp_path / "gallery", encoder).search(["red"], 1, 2)


@pytest.mark.parametrize(("queries", "k", "words"), [(["red"], 0, "at least 1"), ([" "], 3, "empty query")])
def test_questions_without_sense_are_refused(queries, k, words, corpus, tmp_path):
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, corpus / "frames8", tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    assert gallery.search([], 3) == []
    with pytest.raises(ExpectedError, match=words):
        gallery.search(queries, k)


def test_the_commands_index_and_search(corpus, tmp_path, capsys):
    release(tmp_path / "release", *make())
    gallery = str(tmp_path / "gallery")
    index.main(
        [str(tmp_path / "release"), str(corpus / "frames4"), "--out", gallery, "--videos", str(corpus / "videos")]
    )
    assert "3 videos" in capsys.readouterr().out
    search.main([gallery, "a red square", "--k", "2"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "score", "seconds", "file"]
    assert [line.split()[0] for line in lines] == ["1", "2"]
    search.main([gallery, "a red square", "--k", "2", "--json"])
    hits = json.loads(capsys.readouterr().out)
    assert [hit["source"] for hit in hits] == [line.split()[-1] for line in lines]
    assert hits[0].keys() == {field.name for field in fields(Hit)}
    (tmp_path / "release").rename(tmp_path / "moved")
    with pytest.raises(ArtefactError, match="give its place by --release"):
        search.main([gallery, "a red square"])
    search.main([gallery, "a red square", "--release", str(tmp_path / "moved"), "--json"])
    assert json.loads(capsys.readouterr().out)[:2] == hits


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 17), st.integers(0, 99))
def test_top_k_is_that_of_the_full_matrix_for_any_chunk(videos, k, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, vectors = (
        torch.randn(3, 8, generator=generator).double(),
        torch.randn(videos, 8, generator=generator).double(),
    )
    scores, indices = top_k(queries, vectors, k, chunk)
    expected = (queries @ vectors.T).topk(min(k, videos))
    assert torch.equal(indices, expected.indices)
    assert torch.allclose(scores, expected.values)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.integers(1, 12), st.integers(1, 17))
def test_top_k_puts_the_lower_number_first_among_equals(column, k, chunk):
    vectors = torch.tensor(column, dtype=torch.float32).unsqueeze(1)
    scores, indices = top_k(torch.tensor([[1.0], [-1.0]]), vectors, k, chunk)
    for row, sign in enumerate((1, -1)):
        expected = sorted(range(len(column)), key=lambda video: (-sign * column[video], video))[:k]
        assert indices[row].tolist() == expected
        assert scores[row].tolist() == [sign * column[video] for video in expected]


@pytest.mark.parametrize(
    ("weights", "timestamps", "duration", "expected"),
    [
        ([0.1, 0.5, 0.3, 0.1], [0.0, 1.0, 2.0, 3.0], 4.0, (0.5, 2.5)),  # the second neighbour weighs half and more
        ([0.4, 0.1, 0.5], [0.0, 1.0, 2.0], 2.2, (1.5, 2.2)),  # a gap ends the moment, the video too
        ([0.5, 0.5, 0.0], [0.0, 2.0, 6.0], 8.0, (0.0, 4.0)),
        ([1.0, 0.0], [3.0], 9.0, (2.5, 3.5)),  # one real frame, one of padding
        ([1.0], [0.0], 0.2, (0.0, 0.2)),
    ],
)
def test_the_best_moment_surrounds_the_heaviest_frame(weights, timestamps, duration, expected):
    assert best_moment(weights, timestamps, duration) == pytest.approx(expected)
