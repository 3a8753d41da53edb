"""Takes a command line apart as the popt library does, which ipvsadm uses.

What differs from getopt shows in ipvsadm's behaviour: long options are never abbreviated; a value is taken whatever it
looks like, unless it is optional (then a word that begins with ``-`` is left alone); ``-s=rr`` and ``-srr`` are both
``-s rr``; words that are no options are collected and may stand anywhere; ``--`` ends the options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Takes = Literal["nothing", "value", "optional"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option as the command line knows it. `tag` is what the rest of the program calls it."""

    tag: str
    long: str = ""
    short: str = ""
    takes: Takes = "nothing"


class BadOption(Exception):
    """The scan cannot go on. `word` is the word it stopped at, `reason` popt's text for it."""

    def __init__(self, word: str, reason: str) -> None:
        super().__init__(f"{word}: {reason}")
        self.word = word
        self.reason = reason


UNKNOWN = "unknown option"
NO_VALUE = "missing argument"
UNWANTED = "option does not take an argument"


class Scanner:
    """Iterates over the options of `words`; `leftover` then holds the words that are none."""

    def __init__(self, options: Sequence[Option], words: Sequence[str]) -> None:
        self._long = {option.long: option for option in options if option.long}
        self._short = {option.short: option for option in options if option.short}
        self._words = words
        self._next = 0
        self.leftover: list[str] = []

    @property
    def word(self) -> str:
        """The word that was taken last: the option itself, or the value that followed it."""
        return self._words[self._next - 1]

    def __iter__(self) -> Iterator[tuple[Option, str | None]]:
        """Yield each option with its value (None without one); raise `BadOption` where popt gives up."""
        while self._next < len(self._words):
            word = self._words[self._next]
            self._next += 1
            if word == "--":
                self.leftover.extend(self._words[self._next :])
                self._next = len(self._words)
            elif word == "-" or not word.startswith("-"):
                self.leftover.append(word)
            elif word.startswith("--"):
                name, has_value, value = word[2:].partition("=")
                yield self._take(self._long.get(name), value if has_value else None)
            else:
                yield from self._cluster(word[1:])

    def _cluster(self, letters: str) -> Iterator[tuple[Option, str | None]]:
        """One word of short options: ``nc``, ``t10.0.0.1:80``, ``s=rr``."""
        while letters:
            option = self._short.get(letters[0])
            attached = letters[1:].removeprefix("=") if len(letters) > 1 else None
            if option is not None and option.takes == "nothing" and not letters[1:].startswith("="):
                attached, letters = None, letters[1:]
            else:
                letters = ""
            yield self._take(option, attached)

    def _take(self, option: Option | None, attached: str | None) -> tuple[Option, str | None]:
        if option is None:
            raise BadOption(self.word, UNKNOWN)
        if option.takes == "nothing":
            if attached is not None:
                raise BadOption(self.word, UNWANTED)
            return option, None
        if attached is not None:
            return option, attached
        following = self._words[self._next] if self._next < len(self._words) else None
        if option.takes == "optional" and (following is None or following.startswith("-")):
            return option, None
        if following is None:
            raise BadOption(self.word, NO_VALUE)
        self._next += 1
        return option, following
