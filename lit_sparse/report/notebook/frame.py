"""A page inside a notebook: a frame of its own, so that neither styles nor scripts meet those of the notebook.

The frame may run the page's script and nothing else: it has no origin, so that it reaches neither the notebook nor its
server, and the page's own policy keeps it from the network.
"""

from markupsafe import Markup

from lit_sparse.report.shared.rendering import asset, render

LARGEST = 4_000_000
"""Characters of a page that a notebook holds: it is saved with all of its views."""

SAVE = "lit_sparse.side_by_side(record).save('page.html') writes all of it to a file."


def framed(page: str, title: str, height: int, permissions: str = "") -> str:
    """The page as an `iframe`.

    Args:
        page: a whole HTML document.
        title: what it is, for screen readers.
        height: of the frame, in pixels; readers can change it with the mouse.
        permissions: what the page's script may do besides running, such as "allow-downloads".
    """
    page = page.replace("</head>", f"<style>{asset('notebook.css')}</style></head>", 1)
    # Between single quotes only these two end or change the text: pages of numbers stay at about their size.
    source = Markup(page.replace("&", "&amp;").replace("'", "&#39;"))
    sandbox = f"allow-scripts {permissions}".strip()
    return render("notebook_frame.html", source=source, title=title, height=height, sandbox=sandbox)
