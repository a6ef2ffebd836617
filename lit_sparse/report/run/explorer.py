"""The page's interactive piece: one sentence, its tokens, and arcs to what each head reads.

Python writes the tokens and the numbers, `assets/page.js` draws. No text travels in the data.
"""

import json
from html import escape

import numpy as np
from jaxtyping import Float

from lit_sparse.common.formatting import visible, visible_token
from lit_sparse.records.run import AttentionExample
from lit_sparse.report.run.attention_maps import strongest_heads
from lit_sparse.report.shared.page_data import FLOORS, json_for_html

DATA_BUDGET = 1_500_000  # characters of attention data in the page
CHIPS = 6


def explorer(example: AttentionExample) -> str:
    """The section as HTML, with its data; `page.js` has to follow it in the page."""
    title = f"<p><bdi>{escape(visible(example.title))}</bdi></p>" if example.title else ""
    rows = "".join(
        f'<li><output class="before"></output>'
        f'<button type="button">{escape(visible_token(token))}</button><output class="after"></output></li>'
        for token in example.tokens
    )
    size = len(example.tokens)
    drawing = f'<svg class="{{0}}" viewBox="0 0 100 {size}" preserveAspectRatio="none" aria-hidden="true"></svg>'
    return f"""<section class="explorer" aria-labelledby="explorer-title">
<h2 id="explorer-title">What each head reads in one sentence</h2>
{title}
<noscript><p>This piece needs JavaScript; the plot of the same sentence below does not.</p></noscript>
<div class="controls">
<label>Layer <select id="layer"></select></label> <label>Head <select id="head"></select></label>
<span class="soft">Heads that move most:</span> <span id="chips" class="chips"></span>
</div>
<p class="soft">Open edges in this sentence, layers from left to right, heads from top to bottom; the stronger
the colour, the more. Choose a head with a click or with the arrow keys.</p>
<div class="scroll"><div id="map" class="map" role="radiogroup" aria-label="Layer and head"></div></div>
<div class="heading">
<div><span class="dot before"></span><b>Before</b><br><span class="soft" id="count-before"></span></div>
<div><span class="dot after"></span><b>After</b><br><span class="soft" id="count-after"></span></div>
</div>
<div id="arcs" class="arcs">
{drawing.format("before")}<ol class="tokens">{rows}</ol>{drawing.format("after")}
</div>
<div id="reading" aria-live="polite"></div>
<script type="application/json" id="attention-data">{json_for_html(encode_attention(example))}</script>
</section>"""


def encode_attention(example: AttentionExample, budget: int = DATA_BUDGET) -> dict[str, object]:
    """The example's weights as sparse lists [query * T + key, weight in thousandths, ...], one a head.

    `after` holds every open edge. `before` holds weights >= `floor`, which rises from 0.01 until the text of
    all lists is within `budget` characters.
    """
    layers, heads, size, _ = example.before.shape
    after = _sparse_lists(example.after, 0.0)
    room = budget - _length(after)
    for floor in FLOORS:
        before = _sparse_lists(example.before, floor)
        if _length(before) <= room:
            break
    return {
        "layers": layers,
        "heads": heads,
        "size": size,
        "floor": floor,
        "top": strongest_heads(example, CHIPS),
        "before": before,
        "after": after,
    }


def _sparse_lists(weights: Float[np.ndarray, "layers heads tokens tokens"], floor: float) -> list[list[int]]:
    layers, heads, size, _ = weights.shape
    flat = np.tril(np.nan_to_num(weights)).reshape(layers * heads, size * size)
    lists: list[list[int]] = []
    for row in flat:
        (index,) = np.nonzero((row > 0) & (row >= floor))
        thousandths = np.rint(row[index] * 1000).astype(int)
        lists.append(np.stack([index, thousandths], axis=1).ravel().tolist())
    return lists


def _length(lists: list[list[int]]) -> int:
    return len(json.dumps(lists, separators=(",", ":")))
