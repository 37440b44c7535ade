"""Compares verdicts of deltaw::Pattern with Python's re.

Each line of the file given is: kind, pattern, name and verdict (0 or 1), separated by tabs. Exits with 0 if all agree.
"""

import re
import sys
import warnings


def verdict(kind, pattern, name):
    """What Python says, or None where a pattern that must be malformed is not."""
    if kind == "malformed":
        try:
            re.compile(pattern)
        except re.error:
            return False
        return None
    if kind == "full":
        return re.fullmatch(pattern, name) is not None
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def main(path):
    warnings.simplefilter("ignore")
    wrong = cases = 0
    with open(path, encoding="ascii") as lines:
        for line in lines:
            kind, pattern, name, ours = line.rstrip("\n").split("\t")
            cases += 1
            python = verdict(kind, pattern, name)
            if python is None or python != (ours == "1"):
                wrong += 1
                print(f"{kind}: pattern {pattern!r} on {name!r}: deltaw says {ours}, Python says {python}")
    print(f"{cases} cases compared with Python's re, {wrong} disagree")
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
