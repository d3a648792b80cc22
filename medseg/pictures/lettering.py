"""Words in a picture, in a small bitmap alphabet of our own, so that no font is needed."""

from __future__ import annotations

import unicodedata

import numpy as np
from jaxtyping import Bool

ROWS, COLUMNS = 5, 3

_ALPHABET = (
    "A25755 B65656 C34443 D65556 E74647 F74644 G34553 H55755 I72227 J11152 K55655 L44447 M57755 N65555 O25552 P65644 "
    "Q25563 R65655 S34216 T72222 U55557 V55522 W55775 X55255 Y55222 Z71247 075557 126227 261247 361216 455711 574616 "
    "634652 771222 825252 925316 .00002 ,00024 -00700 _00007 +02720 /11244 (12221 )42224 :02020 =07070 %51245 ?61202 "
    "'22000 #57575 <12421 >42124 [64446 ]31113 &25253"
)
_GLYPHS = {entry[0]: tuple(int(digit) for digit in entry[1:]) for entry in _ALPHABET.split(" ")}
"""A letter to its five rows, an octal digit each: 4 is the left dot, 1 the right one."""


def lettered(text: str, *, scale: int = 2) -> Bool[np.ndarray, "height width"]:
    """Draw one line of text; letters become capitals, accents are dropped, unknown signs are question marks.

    Args:
        text: What to write; may be empty.
        scale: Pixels per dot of a letter, which is 5 dots high and 3 wide.

    Returns:
        Where ink is, ``5 * scale`` high and ``4 * scale`` wide per letter.

    Example:
        >>> lettered("é", scale=1).astype(int).tolist()
        [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).upper()
    dots = np.zeros((ROWS, (COLUMNS + 1) * len(plain)), dtype=bool)
    for place, letter in enumerate(plain):
        rows = (0,) * ROWS if letter.isspace() else _GLYPHS.get(letter, _GLYPHS["?"])
        for row, digit in enumerate(rows):
            for column in range(COLUMNS):
                dots[row, place * (COLUMNS + 1) + column] = bool(digit >> (COLUMNS - 1 - column) & 1)
    return dots.repeat(scale, axis=0).repeat(scale, axis=1)
