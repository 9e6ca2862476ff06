"""One measurement in each file: ``measure`` gives rows, ``table`` says them in Markdown, ratios first, and ``plot`` draws them."""
