"""Texts by a `tokenizer.json`: the ids that open_clip gives, in the tower folder, the release and the export."""

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from open_clip.tokenizer import get_clean_fn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from distill.catalogue import build, parse_model_config
from distill.data.jsontokens import FILE, SETTINGS, JsonTokenizer, Spelling, read_spelling
from distill.errors import ArtefactError, RecipeError
from distill.model.towers import ClipConfig, Towers, open_tokenizer, read_architecture
from distill.release.export import export_clip
from distill.release.release import load
from distill.release.writing import write_release

CAPTIONS = [
    "a red square moves to the left, then to the right!",
    "An octopus & a fire   engine",
    "naïve café — 你好 🙂",
    "",
    " ".join(f"word{n}" for n in range(60)),
]
WORDS = 16


def gemma(folder: Path) -> Path:
    """A tokenizer in the way of SigLIP 2: byte-level, an end token (1) and no start, padded with 0."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<eos>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CAPTIONS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return _written(
        folder, tokenizer, {"pad_token": "<pad>", "eos_token": {"__type": "AddedToken", "content": "<eos>"}}
    )


def bert(folder: Path) -> Path:
    """A tokenizer in the way of CLIPA: word pieces between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator([text.lower() for text in CAPTIONS] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _written(folder, tokenizer, {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"})


def _written(folder: Path, tokenizer: Tokenizer, settings: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILE))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **settings}
    (folder / SETTINGS).write_text(json.dumps(settings))
    return folder


KINDS = {"gemma": (gemma, {"clean": "canonicalize"}), "bert": (bert, {"strip_sep_token": True})}


def opened(kind: str, folder: Path, words: int = WORDS) -> JsonTokenizer:
    make, options = KINDS[kind]
    make(folder)
    return JsonTokenizer(words, (folder / FILE).read_text(), read_spelling(folder, options), str(folder), 400)


def test_ids_are_laid_out_as_the_tower_expects(tmp_path):
    ids = opened("gemma", tmp_path / "gemma")(CAPTIONS)
    assert ids.shape == (5, WORDS) and ids[3].tolist() == [1] + [0] * 15, "an empty text is its end"
    assert ids[4, -1] == 1 and (ids[4] > 0).all(), "a long text keeps its end"
    ids = opened("bert", tmp_path / "bert")(CAPTIONS)
    assert ids[3].tolist() == [2] + [0] * 15 and ids[4, -1] == 0 and 3 not in ids, "the separator is left out"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [5, 16, 64])
def test_ids_are_open_clip_s(kind: str, words: int, tmp_path):
    pytest.importorskip("transformers", reason="open_clip's own reader of tokenizer.json needs it")
    from open_clip.tokenizer import HFTokenizer

    tokenizer = opened(kind, tmp_path / "towers", words)
    options = KINDS[kind][1]
    theirs = HFTokenizer(str(tmp_path / "towers"), context_length=words, **options)
    many = CAPTIONS + [f"{text} {n}" for n in range(400) for text in CAPTIONS]
    assert np.array_equal(tokenizer(many), theirs(many).numpy())


def test_what_is_cut_is_known(tmp_path):
    tokenizer = opened("gemma", tmp_path / "towers")
    clean = get_clean_fn("canonicalize")
    whole = Tokenizer.from_file(str(tmp_path / "towers" / FILE))
    for text in CAPTIONS:
        spelled = whole.encode(clean(text)).ids
        assert tokenizer.spelled(text) == spelled[:-1] and tokenizer.is_cut(text) == (len(spelled) > WORDS)


def towers(folder: Path) -> Path:
    """Small towers that read Gemma's way."""
    families.write("siglip", folder)
    gemma(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"clean": "canonicalize"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_a_release_and_its_export_bring_the_tokenizer(tmp_path):
    clip = ClipConfig(model=str(towers(tmp_path / "towers")))
    config = parse_model_config({"kind": "glscl", "clip": clip.model_dump(), "temporal": {"init": "normal"}}, "test")
    loaded = Towers.from_config(clip)
    tokenizer = open_tokenizer(clip, loaded.architecture, 12)
    model = build(config, loaded)
    frames = {"sampler": {"kind": "clip4clip", "fps": 1, "num_frames": 2}, "size": 160, "whole": True}
    write_release(
        tmp_path / "release", model=model, model_config=config, weights=model.state_dict(),
        text={"max_words": 12, "vocabulary": None}, frames_config=frames, provenance={"name": "x"},
        tokenizer_json=tokenizer.content,
    )  # fmt: skip
    release = load(tmp_path / "release")
    assert np.array_equal(release.tokenizer(CAPTIONS), tokenizer(CAPTIONS))
    ids = torch.from_numpy(tokenizer(CAPTIONS))
    text = release.encode_text(CAPTIONS)
    with torch.inference_mode():
        assert torch.equal(text.sentence, model.eval().encode_text(ids).sentence)
    length = [min(12, len(tokenizer.spelled(caption)) + 1) for caption in CAPTIONS]
    assert model.clip.text.real_words(ids).sum(1).tolist() == length, "words up to the end, which is not the largest id"

    export_clip(release, tmp_path / "again", torch.float32)
    again = ClipConfig(model=str(tmp_path / "again"))
    assert read_architecture(again) == model.clip.architecture
    assert np.array_equal(open_tokenizer(again, read_architecture(again), 12)(CAPTIONS), tokenizer(CAPTIONS))
    (tmp_path / "release" / FILE).write_text("{}")
    with pytest.raises(ArtefactError):
        load(tmp_path / "release")


def test_towers_without_their_tokenizer_are_refused(tmp_path):
    folder = towers(tmp_path / "towers")
    config = ClipConfig(model=str(folder))
    with pytest.raises(RecipeError, match=r"ViT-B-16-SigLIP does not read texts by CLIP's tokenizer; .* hf-hub:REPO"):
        read_architecture(ClipConfig(model="ViT-B-16-SigLIP", weights="webli"))
    for name, content, message in (
        (SETTINGS, "[]", "expected a mapping"),
        (SETTINGS, "{", "cannot be read"),
        (SETTINGS, "{}", "names no pad_token"),
        (SETTINGS, '{"pad_token": "nothing"}', "'nothing' is no token of tokenizer.json"),
        (FILE, "{}", "not a tokenizer that can be read"),
        (FILE, '{"model": {"type": "BPE"}, "version": "1.0"', "not a tokenizer that can be read"),
    ):
        kept = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(ArtefactError, match=message):
            read_architecture(config)
        (folder / name).write_text(kept)
    (folder / FILE).unlink()
    with pytest.raises(ArtefactError, match=r"holds no tokenizer\.json, by which these towers read texts"):
        read_architecture(config)


def test_towers_come_from_the_hub_s_cache(tmp_path, monkeypatch):
    """Offline, as in any test: what is in the cache is taken, anything else is said to be out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept, revision = tmp_path / "models--someone--towers", "a" * 40
    towers(kept / "snapshots" / revision)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(revision)
    found = read_architecture(ClipConfig(model="hf-hub:someone/towers"))
    assert found == read_architecture(ClipConfig(model=str(kept / "snapshots" / revision)))
    assert found == read_architecture(ClipConfig(model=f"hf-hub:someone/towers@{revision}"))
    for name in ("hf-hub:someone/else", "hf-hub:", "hf-hub:a/b/c/d", "hf-hub:../../etc"):
        with pytest.raises(RecipeError, match=r"clip\.model: 'hf-hub:.* cannot be fetched: "):
            read_architecture(ClipConfig(model=name))


def test_a_room_for_no_word_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]"))
    tokenizer.post_processor = processors.TemplateProcessing(single="a $A a", special_tokens=[("a", 1)])
    with pytest.raises(ArtefactError, match="no word fits 2 tokens"):
        JsonTokenizer(2, tokenizer.to_str(), Spelling(pad=0), "x", 2)


def test_a_tokenizer_that_fails_at_a_text_is_refused_in_words(tmp_path):
    """Its library raises a panic, a plain exception, or gives numbers that the text tower does not know."""
    content = json.loads((bert(tmp_path / "towers") / FILE).read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    for changes, rows, message in (
        ({"pre_tokenizer": split}, 400, r"^x: not a tokenizer that can be read \(.*retry-limit"),
        ({"model": {**content["model"], "vocab": {"[PAD]": 0}}}, 400, r"^x: not a tokenizer .*UNK"),
        ({}, 4, r"^x: gives numbers up to \d+, but the text tower knows 4 tokens"),
    ):
        tokenizer = JsonTokenizer(16, json.dumps({**content, **changes}), Spelling(pad=0), "x", rows)
        with pytest.raises(ArtefactError, match=message):
            tokenizer(["a" * 30 + "!"])
    tokenizer = opened("bert", tmp_path / "again")
    assert tokenizer.is_cut("\ud800" * 99) == (len(tokenizer.spelled("\ud800" * 99)) > tokenizer.room)
    for options, message in (({"clean": "all"}, "clean"), ({"strip_sep_token": "no"}, "strip_sep_token: 'no'")):
        with pytest.raises((ArtefactError, RecipeError), match=rf"tokenizer_kwargs: {message}"):
            read_spelling(tmp_path / "again", options)
