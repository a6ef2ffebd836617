"""Command line of lm-evaluation-harness with sparse models: `python -m lit_sparse.downstream.lm_eval`.

It takes the arguments of `lm_eval` and has one more model type:

    python -m lit_sparse.downstream.lm_eval --model lit_sparse --model_args pretrained=FOLDER --tasks hellaswag

The harness (0.4) looks for no plugins: the plain command `lm_eval` never imports this package. In Python the model type
is there once both are imported: `lm_eval.simple_evaluate(model="lit_sparse", model_args="pretrained=FOLDER", ...)`.
"""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from lit_sparse.models.auto import SparseModelForCausalLM
from lit_sparse.models.base import load_config, resolve_model
from lit_sparse.models.compared import files_of
from lit_sparse.models.hub import find_sparse


class SparseLM(HFLM):
    """The harness's model type `lit_sparse`: a sparse model with its gates on.

    Args:
        pretrained: a sparse model by its name, as in `lit_sparse.from_pretrained`.
        device: default: the GPU if there is one.
        options: those of the harness's own model type `hf`: batch_size, dtype ("auto" is the base model's), max_length,
            tokenizer, add_bos_token, trust_remote_code, ...

    Raises:
        ValueError: no such model or a dense one, an option that would make another model of it, such as `peft`, or no
            tokenizer.
    """

    def __init__(self, pretrained: str, device: str | None = None, **options: Any):
        folder = find_sparse(pretrained)
        if folder is None:
            raise ValueError(f"there is no sparse model {pretrained}; the model type hf evaluates dense ones")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=str(folder.resolve()), device=device, **options)

    def _get_config(self, pretrained: str, *, trust_remote_code: bool | None = False, **_: Any) -> None:
        self._config = load_config(files_of(pretrained), trust_remote_code=bool(trust_remote_code))

    def _create_tokenizer(self, pretrained: str, tokenizer: Any, **options: Any) -> None:
        source = tokenizer or resolve_model(files_of(pretrained))
        try:
            super()._create_tokenizer(pretrained, source, **options)
        except Exception as error:  # transformers raises several kinds
            raise ValueError(f"no tokenizer in {source}: name another with tokenizer=NAME ({error})") from error

    def _create_model(
        self,
        pretrained: str,
        *,
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool | None = False,
        gpus: int | None = None,
        **options: Any,
    ) -> None:
        if changed := sorted(name for name, value in options.items() if value and value != _DEFAULTS.get(name)):
            raise ValueError(f"the model type lit_sparse takes no {', '.join(changed)}: leave it out")
        loaded = SparseModelForCausalLM.from_pretrained(
            pretrained, dtype=dtype, trust_remote_code=bool(trust_remote_code)
        )
        self._model = loaded.to(self.device)


_DEFAULTS = {"revision": "main", "offload_folder": "./offload"}
"""Options that the harness passes by default."""


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
