"""Runs the README's first snippet with what is installed, trains with its trainer, and looks for the package's files.

python -I .ci/installed.py README.md
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
import sys
from pathlib import Path
from typing import Any

import torch

import lightning_lr

if not Path(lightning_lr.__file__).is_relative_to(sys.prefix):
    sys.exit(f"this is the package of {lightning_lr.__file__}, and not the one that was installed in {sys.prefix}")

snippet = re.search(r"^```python\n(.*?)^```", Path(sys.argv[1]).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
assert snippet is not None
names: dict[str, Any] = {}
exec(snippet[1], names)
pl = names["pl"]


class Line(pl.LightningModule):
    """Learns y = 3 x."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.layer(batch[0]), 3 * batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(256, 1))
loaders = [torch.utils.data.DataLoader(data, batch_size=16) for _ in range(2)]
names["trainer"].fit_loop.max_epochs = 10
names["trainer"].fit(Line(), *loaders)

(tab,) = importlib.metadata.entry_points(group="tensorboard_plugins", name="lightning_lr")
tab.load()
files = importlib.resources.files("lightning_lr")
for name in ("py.typed", "tensorboard/static/index.js", "tensorboard/static/style.css", "report/inline.js"):
    assert files.joinpath(name).is_file(), name
version = importlib.metadata.version("lightning_lr")
assert version == lightning_lr.__version__, (version, lightning_lr.__version__)
print(f"lightning_lr {version} from {Path(lightning_lr.__file__).parent}")
