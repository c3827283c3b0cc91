"""The command app: a page on which pictures are dropped, and what a run makes of them."""
