"""Parts that all pages share: the frame, the style of plots, the data of a page's script."""
