"""Prose with speakers, and code: small, and with something for every kind of question."""

from __future__ import annotations

from extensible_embedding.train.synthetic import Documents

SPEAKERS = ("Mr. Darrow", "Catherine", "Captain Wells", "Ursula")


def paragraph(number: int) -> str:
    name, other = SPEAKERS[number % 4], SPEAKERS[(number + 1) % 4]
    return (
        f"On day {number + 100} the schooner passed the yellow headland of Porto{number}. Nobody "
        f"but {name} had expected harbour{number} to be empty. The crew counted {number * 7 + 11} "
        f"barrels in the hold.\n\n"
        f'"We cannot stay near rock {number} all night," said {name}, and looked up.\n\n'
        f'"Then let us go to bay {number} at once!" {other} replied.'
    )


def function(number: int) -> str:
    return (
        f"    def load_{number}(self, path, limit={number}):\n"
        f"        rows_{number} = read(path)[:limit]\n"
        f"        total_{number} = sum(rows_{number}) + {number + 10}\n"
        f"        return total_{number}\n"
    )


PROSE = Documents(["\n\n".join(map(paragraph, range(80))), "\n\n".join(map(paragraph, range(9)))])
CODE = Documents(["class Loader:\n\n" + "\n".join(map(function, range(60)))])
