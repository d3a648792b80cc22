"""Organs that come in pairs: left and right, told by their names."""

from __future__ import annotations

import re

SIDES = {"left": "right", "l": "r", "lt": "rt", "links": "rechts", "gauche": "droite", "sinistra": "destra"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\sA-Za-z\d]+|\s+")


def side_pairs(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Find the pairs of names that differ only in the word for the side.

    Words are told apart by spaces, underscores, hyphens, dots, digits and capitals; the case does not matter.

    Example:
        >>> side_pairs(("kidney_left", "kidney_right", "liver", "Lung L", "Lung R", "ParotidL", "ParotidR"))
        (('kidney_left', 'kidney_right'), ('Lung L', 'Lung R'), ('ParotidL', 'ParotidR'))
        >>> side_pairs(("left ventricle", "liver", "lung"))
        ()
    """
    by_words = {tuple(word.lower() for word in _WORDS.findall(name)): name for name in names}
    pairs = []
    for words, name in by_words.items():
        for index, word in enumerate(words):
            other = (*words[:index], SIDES.get(word, ""), *words[index + 1 :])
            if other in by_words:
                pairs.append((name, by_words[other]))
    return tuple(pairs)
