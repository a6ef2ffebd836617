"""Numbers in a page for its script."""

import json

FLOORS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
)  # weights below are not drawn; a larger one where there is too much


def json_for_html(value: object) -> str:
    """JSON that can stand in a script element: no `<`, `>`, `&` or line separators as such."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return "".join(f"\\u{ord(char):04x}" if char in "<>&\u2028\u2029" else char for char in text)
