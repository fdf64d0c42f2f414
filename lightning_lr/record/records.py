"""Records: what happened to the rates, as data, in the logger's own event file.

A summary of this package's own plugin holds the records of one step: a tensor of strings, each a JSON object. All have
`kind`, `step` (on the loggers' axis) and `words` (the line of `lr-events`, where one was said). Rates are absolute,
factors ratios; numbers that are not finite are the strings "nan", "inf" and "-inf". The kinds:

- `run`, at the start of a fit, and again when param groups were added: `package` (its version), `groups` (of `tag`,
  `optimizer`, `group`, `scheduled`: has the optimizer a scheduler?), `factors` (names of callbacks), `callbacks` (of
  `name`, `written`), `resumed` (does the fit begin at a step above 0?), `updates` (the planned steps in all, or null),
  `made` (real updates so far), `processes`, `time` (unix).
- `first`, a group's first update: `tag`, `optimizer`, `group`, `update`, `new`, `parts`.
- `change`: the same with `old`, `cause`, and `parts` of `source`, `old`, `new`, `reason`, whose product it is. `loud`
  names the sources that are told; `running` those that change on, of which only the end is told.
- `drift`, that end: `source`, `first`, `last`, `lowest`, `highest`, `changes`, `start` and `end` (steps).
- `incident`: `callback`, `optimizer`, `tag`, `what` (limited, dropped, held, rewound, trial passed, trial data, gave
  up, broken off), `told` (or only counted), `update` (among those judged), `epoch`, `batch`, `rank` (the only one
  whose loss was not finite), `side` (the weights: present, newest or best), `loss`, `grad_norm`, `threshold`,
  `update_ratio`, `factor`, `back` (`step`, `lost` updates), `cause`, `parameters` (some that are not finite),
  `evidence` (`here`, `there`, `batches`).
- `finding`: `callback`, `tag`, `why`, `applied`, and `finding`, which is `Finding.to_dict()`.
- `note`, any other line: `source`; `what` is "count" where it counts incidents, "left out" where it counts records.
- `end`: `status` (finished, stopped, interrupted, failed), `error`, `updates`, `counts`, `rates` by tag, `left_out`.

Neither torch nor Lightning is imported here: TensorBoard reads records too.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

PLUGIN = "lightning_lr"
"""The name of the plugin that the summaries belong to."""

TAG = "lightning_lr/records"

VERSION = 1
"""The version of a record's entries, in each summary's metadata."""

KEPT = 10_000
"""The most records kept in memory: the latest."""

MOST = 20_000
"""The most records of a run that are written. After them only the important ones are, up to as many again."""

LASTING = frozenset(("run", "finding", "end"))
RARE = frozenset(("rewound", "gave up", "broken off", "left out"))


class Records:
    """The records of one run: the latest in memory, and those that wait to be written.

    Example:
        >>> records = Records()
        >>> records.add({"kind": "note", "step": 3, "words": "hello", "value": float("nan")})
        >>> records.take()
        [{'kind': 'note', 'step': 3, 'words': 'hello', 'value': 'nan'}]
        >>> records.take(), len(records.kept)
        ([], 1)
    """

    def __init__(self) -> None:
        self.kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.waiting: list[dict[str, Any]] = []
        self.left_out = 0
        """How many records were not written because there were too many."""
        self._written = 0

    def add(self, record: Mapping[str, Any], *, rare: bool = False) -> None:
        """Adds a record.

        Args:
            record: with `kind`, `step` and `words`.
            rare: whether it is important enough to be written after the first `MOST`.
        """
        plain = to_json(record)
        self.kept.append(plain)
        bound = math.inf if plain["kind"] in LASTING else 2 * MOST if rare or plain.get("what") in RARE else MOST
        if self._written >= bound:
            self.left_out += 1
            return
        self._written += 1
        self.waiting.append(plain)

    def take(self) -> list[dict[str, Any]]:
        """Returns the records that wait to be written, oldest first, and empties the queue."""
        taken, self.waiting = self.waiting, []
        return taken


def to_json(value: Any) -> Any:
    """The value in types that JSON has.

    Example:
        >>> to_json({"loss": float("-inf"), "rates": (1, 0.5)})
        {'loss': '-inf', 'rates': [1, 0.5]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def as_summary(records: Iterable[Mapping[str, Any]]) -> Any:
    """A `Summary` with all records of one step.

    Args:
        records: what `Records.take` returned.
    """
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

    # protobuf creates these names at run time, where no type checker sees them
    made: Any = summary_pb2
    tensors: Any = tensor_pb2
    shapes: Any = tensor_shape_pb2
    types: Any = types_pb2
    texts = [json.dumps(record, allow_nan=False).encode() for record in records]
    plugin = made.SummaryMetadata.PluginData(plugin_name=PLUGIN, content=json.dumps({"version": VERSION}).encode())
    metadata = made.SummaryMetadata(plugin_data=plugin, data_class=made.DATA_CLASS_TENSOR)
    shape = shapes.TensorShapeProto(dim=[shapes.TensorShapeProto.Dim(size=len(texts))])
    tensor = tensors.TensorProto(dtype=types.DT_STRING, tensor_shape=shape, string_val=texts)
    return made.Summary(value=[made.Summary.Value(tag=TAG, metadata=metadata, tensor=tensor)])


def records_in(tensor: Any) -> list[dict[str, Any]]:
    """The records in the tensor of a summary's value.

    Args:
        tensor: a `TensorProto`, as `summary` makes it.
    """
    return [json.loads(text) for text in tensor.string_val]
