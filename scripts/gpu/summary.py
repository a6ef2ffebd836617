"""A short table of what `step.py` and `kernels.py` wrote into a folder.

python scripts/gpu/summary.py DIR
"""

import json
import re
import sys
from pathlib import Path

SHOWN = ("tokens_a_second", "seconds_a_step", "peak_memory_gb", "total_memory_gb", "seconds_a_step_at_40_percent")


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        if isinstance(found, dict) and "error" in found:
            print(f"{path.stem}: FAILED, {found['error'].splitlines()[0][:200]}")
        elif path.stem.startswith(("step-", "estimate-")):
            print(f"{path.stem}: " + ", ".join(f"{key} {found[key]:,.3g}" for key in SHOWN if key in found))
        elif path.stem == "profile":
            print(f"profile: {found}")
    table = folder / "profile.txt"
    if table.is_file():
        for line in table.read_text().splitlines()[1:18]:
            columns = re.split(r"\s{2,}", line.strip())
            if len(columns) > 1:
                print(f"{columns[0][:70]:70} " + " ".join(f"{column:>12}" for column in columns[-5:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
