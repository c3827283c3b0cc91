"""The command app: a page on which images are dropped, and what a run makes of them."""
