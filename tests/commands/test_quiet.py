"""Output holds what a user can use: no bars in logs, no libraries' notes."""

QUIET = """
from lit_sparse.commands.quiet import quiet
quiet()
import logging, sys
from lightning.pytorch import Trainer
from tqdm import tqdm
from transformers.utils import logging as transformers_logging
for _ in tqdm(range(3), file=sys.stderr):
    pass
logging.getLogger("lightning.pytorch.utilities.rank_zero").info("a tip")
transformers_logging.get_logger("transformers.modeling_utils").warning("a note")
print(transformers_logging.is_progress_bar_enabled())
"""


def test_a_log_holds_no_bars_and_no_notes(start_python):
    output, errors = start_python("-W", "error", "-c", QUIET).communicate(timeout=120)
    assert output.split() == ["False"]
    assert errors == ""
