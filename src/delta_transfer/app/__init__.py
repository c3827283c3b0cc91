"""The web app of a run: predictions and explanations for uploaded images."""
