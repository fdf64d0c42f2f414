"""Old records: those of files without records, read from the lines of `lr-events`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lightning_lr.story.event_file import Text

TAG = "lr-events/text_summary"

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan)"
_CHANGE = re.compile(rf"(?P<where>.+?): (?P<old>{_NUMBER}) -> (?P<new>{_NUMBER}): (?P<cause>.+)")
_FIRST = re.compile(rf"(?P<where>.+?): first update at (?P<new>{_NUMBER})(?P<shares>.*)")
_DRIFT = re.compile(
    rf"(?P<where>.+?): (?P<source>[^:]+?) (?P<first>{_NUMBER}) -> (?P<last>{_NUMBER}) in (?P<changes>\d+) changes"
    rf"(?P<beyond>.*), steps (?P<start>\d+) to (?P<end>\d+)"
)
_PART = re.compile(
    rf"(?P<source>[^;:]+?) (?P<old>{_NUMBER}) -> (?P<new>{_NUMBER})(?:: (?P<reason>.*?))?(?=; [^;:]+? {_NUMBER} -> |$)"
)
_INCIDENT = re.compile(
    r"(?P<callback>\S+): (?P<what>limited|dropped|rewound|trial passed|trial: the data is to blame|trial broken off)"
    r"\b(?: for)?(?: (?P<more>\d+) more like this)?(?P<rest>.*)"
)
_GAVE_UP = re.compile(r"(?P<callback>\S+) gives up.*?: (?P<cause>.*)")
_GOES_ON = re.compile(r" \(([^()]*): goes on like this, the next line of it comes at its end\)$")
_LOSS, _NORM = re.compile(rf"\bloss ({_NUMBER})"), re.compile(rf"\bgradient norm ({_NUMBER})")


def is_old(text: Text) -> bool:
    """Whether it is a text of this package."""
    return text.plugin == "text" and text.tag == TAG


def old_records(texts: Iterable[Text], tags: Iterable[str]) -> list[dict[str, Any]]:
    """Records as far as the lines give them; a line of no known form is a `note`.

    Args:
        texts: the texts, in the order in which they were written.
        tags: the tags of the scalars, to find the tags of the rates.
    """
    known = set(tags)
    found = []
    for text in texts:
        if is_old(text):
            lines = [line for one in text.texts for line in one.split("\n")]
            found += [_record(line.removeprefix("- "), text.step, known) for line in lines if line]
    return found


def _record(line: str, step: int, tags: set[str]) -> dict[str, Any]:
    base = {"kind": "note", "step": step, "words": line, "source": ""}
    if match := _DRIFT.fullmatch(line):
        first, last = float(match["first"]), float(match["last"])
        beyond = dict(re.findall(rf"(lowest|highest) ({_NUMBER})", match["beyond"]))
        return (
            base
            | _names(match["where"], tags)
            | {
                "kind": "drift",
                "source": match["source"],
                "first": first,
                "last": last,
                "lowest": float(beyond.get("lowest", min(first, last))),
                "highest": float(beyond.get("highest", max(first, last))),
                "changes": int(match["changes"]),
                "start": int(match["start"]),
                "step": int(match["end"]),
            }
        )
    if match := _FIRST.fullmatch(line):
        shares = re.findall(rf", ([^,]+?) ({_NUMBER})(?=,|$)", match["shares"])
        parts = [{"source": source, "old": None, "new": float(new), "reason": ""} for source, new in shares]
        return base | _names(match["where"], tags) | {"kind": "first", "new": float(match["new"]), "parts": parts}
    if match := _INCIDENT.match(line):
        what = {"trial: the data is to blame": "trial data"}.get(match["what"], match["what"])
        cause = match["rest"].partition(": ")[2].partition(" (loss ")[0] or match["rest"].strip(" ,:")
        loss, norm = (pattern.search(line) for pattern in (_LOSS, _NORM))
        return base | {
            "kind": "incident",
            "callback": match["callback"],
            "source": match["callback"],
            "what": what,
            "cause": cause,
            "count": int(match["more"] or 1),
            "loss": loss and float(loss[1]),
            "grad_norm": norm and float(norm[1]),
        }
    if match := _GAVE_UP.match(line):
        who = {"callback": match["callback"], "source": match["callback"]}
        return base | who | {"kind": "incident", "what": "gave up", "cause": match["cause"], "count": 1}
    line, goes_on = _GOES_ON.sub("", line), _GOES_ON.search(line)
    if match := _CHANGE.fullmatch(line):
        parts = [
            {"source": p["source"], "old": float(p["old"]), "new": float(p["new"]), "reason": p["reason"] or ""}
            for p in _PART.finditer(match["cause"])
        ]
        own = {"kind": "change", "old": float(match["old"]), "new": float(match["new"]), "cause": match["cause"]}
        own |= {"parts": parts, "running": goes_on[1].split(" and ") if goes_on else []}
        return base | _names(match["where"], tags) | own
    return base | {"source": name[0] if (name := re.match(r"\w+(?=: )", line)) else ""}


def _names(where: str, tags: set[str]) -> dict[str, str]:
    optimizer, _, group = where.partition("/")
    return {"tag": where if where in tags and f"lr-{where}" not in tags else f"lr-{where}"} | {
        "optimizer": optimizer,
        "group": group,
    }
