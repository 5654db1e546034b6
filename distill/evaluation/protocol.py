"""The named protocols: data set, gallery and queries of each test, with the fingerprint of the official files.

A frame set stands for one split: its videos are the gallery, its captions are the queries. In every protocol here

* text-to-video (T2V): every caption is a query, and its own video is the only hit;
* video-to-text (V2T): every video is a query, the captions of a video are one group that scores by its best member, and
  the query's own group is the only hit.

The fingerprints (distill/evaluation/standing.py) were computed from each data set's published files as
`distill/packing` reads them: captions stripped of white space at both ends, repeated captions kept. The demo has no
official files, because its size is the user's; it is known by the form of its ids and captions.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One test: data set and split, its gallery and its queries. None stands for sizes or a hash that are not known."""

    split: str  # data set and split
    gallery: str  # where the ids of the videos come from
    queries: str  # what a caption is
    size: tuple[int, int] | None = None  # videos of the gallery, captions (the queries of T2V)
    fingerprint: str | None = None  # of the official files
    video_form: str = ""  # regular expression that is found in every video id
    caption_form: str = ""  # and one that is found in every caption


OWN = "own"
DEMO_THING = "(an? )?[^ ]+( [^ ]+){0,3}"
DEMO_MOTION = "slides? left|slides? right|rises?|falls?|grows?|shrinks?|spins?|bounces?"

PROTOCOLS: dict[str, Protocol] = {
    "msrvtt-1ka": Protocol(
        split="MSR-VTT, 1k-A test (JSFusion)",
        gallery="video_id in MSRVTT_JSFUSION_test.csv",
        queries="one sentence a video, from the same file",
        size=(1000, 1000),
        fingerprint="cf616601531ffdcd399195b70596c5eaab19cee655a0f5e391f5def2a8bc4d2b",
    ),
    "msrvtt-full": Protocol(
        split="MSR-VTT, official test",
        gallery="the 2,990 ids of split test in MSRVTT_data.json",
        queries="the twenty sentences of each video there",
        size=(2990, 59800),
    ),
    "msvd": Protocol(
        split="MSVD, test",
        gallery="ids in test_list.txt",
        queries="all captions of each video in captions_msvd.json, repeats too",
        size=(670, 27763),
        fingerprint="734d9ffb2389e6ccd6df05b908d9bcb54263259026b9b8b735feeef6bae95e5d",
    ),
    "vatex-hgr": Protocol(
        split="VATEX, test as split by HGR",
        gallery="the 1,500 ids of HGR's test list, which are of the official validation set",
        queries="the ten English captions of each video",
        size=(1500, 15000),
    ),
    "lsmdc-1k": Protocol(
        split="LSMDC, public test of the 2016 challenge",
        gallery="clips in LSMDC16_challenge_1000_publictect.csv",
        queries="one sentence a clip, from the same file",
        size=(1000, 1000),
        fingerprint="23fc32f167903348a68dca67541a5e655a3c2a2e83333931462395c490fa2f2f",
    ),
    "activitynet-val1": Protocol(
        split="ActivityNet Captions, val_1",
        gallery="all ids in val_1.json",
        queries="one paragraph a video: its sentences, joined by one space",
        size=(4917, 4917),
        fingerprint="bf604697010363cfb9f06126c8f664bde9273b5053f15051b1aba0e38d845a4c",
    ),
    "didemo-para": Protocol(
        split="DiDeMo, test",
        gallery="videos in test_data.json, by file name without extension (1,037 names with it)",
        queries="one paragraph a video: its descriptions in the order of the file, joined by one space",
        size=(1004, 1004),
        fingerprint="0ec1f283ce310bacb4d0e7430910a05c473d1285766bd8d055ec5051c4a6391b",
    ),
    "demo": Protocol(
        split="emoji in motion, test",
        gallery="videos in the test.csv that tools/make_demo.py writes, as many as it was asked for",
        queries="all captions of each video in MSRVTT_data.json beside it",
        video_form="^video[0-9]+$",
        caption_form=rf"\b({DEMO_MOTION})\b|\bon an? [a-z]+ background\b|^{DEMO_THING} and then {DEMO_THING}$",
    ),
    OWN: Protocol(
        split="a test set of your own",
        gallery="all videos of the frame set",
        queries="all captions of each video there",
    ),
}
