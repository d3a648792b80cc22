"""Organs that come in pairs: left and right, told by their names."""

from __future__ import annotations

import re

SIDES = {"left": "right", "l": "r", "lt": "rt", "links": "rechts", "gauche": "droite", "sinistra": "destra"}
_SIDE = dict.fromkeys(SIDES, "left") | dict.fromkeys(SIDES.values(), "right")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\sA-Za-z\d]+|\s+")


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in alphabetical order, small, those for a side in English.

    Example:
        >>> words_of("Kidney_L"), words_of("leftKidney")
        (('kidney', 'left'), ('kidney', 'left'))
    """
    words = (word.lower() for word in _WORDS.findall(name) if word[0].isalnum())
    return tuple(sorted(_SIDE.get(word, word) for word in words))


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
