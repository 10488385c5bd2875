"""Rewritten networks on the Hugging Face Hub, or in a folder, by the calls that its users know."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from torch import nn

from reconv.rewriting.job import Result
from reconv.rewriting.store import CONFIG, PLAN, SUMMARY, WEIGHTS, Run, load, read_run, save_run

FILES = [PLAN, CONFIG, WEIGHTS, SUMMARY]  # all that is ever read
CARD = """---
library_name: reconv
tags: [reconv, convolution, model_hub_mixin]
---

# A rewritten convolutional network

{changes} of its layers were rewritten by reconv, keeping what they had learned.

| | parameters | MACs |
|---|---|---|
| before | {before} |
| after | {after} |

```python
import reconv

model = reconv.HubModel.from_pretrained("NAME OR FOLDER")
```

`plan.json` says what was changed and `report.html` shows it. Weights are safetensors; no code is loaded.
"""


class HubModel(nn.Module, ModelHubMixin):
    """A rewritten network with save_pretrained, from_pretrained and push_to_hub; what is saved is a run folder.

    Args:    source: the Result of `reconv.rewrite`, or a run folder.
             base, trust_code: as `reconv.load` takes them, for a folder.
    Raises:  ConvError: as `reconv.load`.
    Source:  huggingface_hub's ModelHubMixin
    Example:
             >>> sorted(name for name in vars(ModelHubMixin) if name in dir(HubModel) and name[0] != "_")
             ['from_pretrained', 'generate_model_card', 'push_to_hub', 'save_pretrained']
    """

    def __init__(
        self,
        source: Result | str | Path,
        base: nn.Module | Callable[[], nn.Module] | None = None,
        trust_code: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(source, Result):
            self.run = Run(source.plan, source.config, source.before, source.after, source.error)
            self.network = source.model
        else:
            self.run = read_run(source)
            self.network = load(source, base, trust_code)
        self.train(self.network.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        run = self.run
        save_run(save_directory, model=self.network, plan=run.plan, before=run.before, after=run.after,
                 error=run.error, config=run.config)  # fmt: skip

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,  # base, trust_code
    ) -> HubModel:
        if os.path.isdir(model_id):
            return cls(model_id, **model_kwargs)
        kept = snapshot_download(model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                                 local_files_only=local_files_only, token=token, allow_patterns=FILES)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:  # the cache holds links, which a run folder must not
            for name in FILES:
                if (Path(kept) / name).is_file():
                    shutil.copy(Path(kept) / name, folder)
            return cls(folder, **model_kwargs)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        run = self.run
        before, after = (
            "unknown | unknown" if each is None else f"{each.total.params} | {each.total.macs}"
            for each in (run.before, run.after)
        )
        return ModelCard(CARD.format(changes=len(run.plan.edits), before=before, after=after))
